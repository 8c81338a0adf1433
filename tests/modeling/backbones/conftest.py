"""What the backbones' tests share: transformers' backbone and ours with the same weights, and how close is equal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoBackbone

from maskformer.modeling.backbones import build_backbone

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Fill every tensor with numbers that matter, the running statistics of batch normalisation included."""

    def fill(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                tensor.normal_(std=0.2)
                if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                    tensor.abs_().add_(0.7)
        return module

    return fill


@pytest.fixture
def twins(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., tuple[Any, Any]]:
    """transformers' backbone and ours for one configuration, in eval mode, with equal weights."""

    def make(config: Any, **options: Any) -> tuple[Any, Any]:
        peer = randomize(AutoBackbone.from_config(config)).eval()
        ours = build_backbone(config, **options).eval()
        keys = set(ours.state_dict())
        ours.load_state_dict({name: tensor for name, tensor in peer.state_dict().items() if name in keys})
        return peer, ours

    return make


@pytest.fixture
def loss() -> Callable[[tuple[Tensor, ...]], Tensor]:
    """A number that every cell counts in differently: squares would not do, normalised maps all have the same."""

    def weigh(maps: tuple[Tensor, ...]) -> Tensor:
        weights = (torch.arange(each.numel(), dtype=torch.float32).sin().view(each.shape) for each in maps)
        return torch.stack([(each * weight).mean() for each, weight in zip(maps, weights, strict=True)]).sum()

    return weigh


@pytest.fixture
def assert_same_maps() -> Callable[..., None]:
    """Maps equal to `tolerance` of each map's largest value."""

    def check(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
        assert len(ours) == len(theirs) == 4
        for mine, expected in zip(ours, theirs, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance * scale)

    return check


@pytest.fixture
def assert_same_gradients() -> Callable[[nn.Module, nn.Module], None]:
    """Gradients equal to 1e-4 of each parameter's largest."""

    def check(ours: nn.Module, peer: nn.Module) -> None:
        expected = {name: parameter.grad for name, parameter in peer.named_parameters()}
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            scale = expected[name].abs().max().item()
            assert scale > 0, name
            if name.endswith("key.bias"):
                # Adding one number to all scores of a row changes nothing: what is left here is rounding.
                assert parameter.grad.abs().max() < 1e-3 * expected[name.replace("key", "query")].abs().max()
                continue
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-4 * scale, msg=name)

    return check
