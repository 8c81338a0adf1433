"""What both of our backbones must do: recompute features, work in half precision, compile, refuse other channels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import MaskFormerSwinConfig, ResNetConfig

from maskformer.modeling.backbones import build_backbone

RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 2, 2, 1])
SWIN = MaskFormerSwinConfig(
    image_size=64, embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, drop_path_rate=0.0
)
BUILDERS: dict[str, Callable[[], Any]] = {
    "swin": partial(build_backbone, SWIN),
    "resnet": partial(build_backbone, RESNET),
    "resnet-frozen": partial(build_backbone, RESNET, norm="frozen"),
}


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return BUILDERS[request.param]


@pytest.fixture
def two(build: Callable[[], Any]) -> tuple[Any, Any]:
    """Two backbones with the same weights."""
    one, other = build(), build()
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(
    two: tuple[Any, Any], use_reentrant: bool, assert_same_gradients: Any, loss: Any
) -> None:
    """Same gradients, and running statistics that count a batch once although its features are computed twice."""
    plain, economical = two
    calls = 0

    def counting(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return checkpoint(*args, use_reentrant=use_reentrant)

    for module in economical.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = counting
    pixel_values = torch.randn(2, 3, 50, 70, requires_grad=use_reentrant)
    economical.eval()(pixel_values)
    assert calls == 0
    for backbone in (plain.train(), economical.train()):
        loss(backbone(pixel_values)).backward()
    assert calls == 6
    assert_same_gradients(economical, plain)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(economical.state_dict()[name], tensor, msg=name)


def test_bfloat16_and_autocast(build: Callable[[], Any], assert_same_maps: Any, loss: Any) -> None:
    backbone = build().eval()
    pixel_values = torch.randn(2, 3, 50, 70)
    exact = backbone(pixel_values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = backbone(pixel_values)
    loss(mixed).backward()
    assert_same_maps(tuple(each.float() for each in mixed), exact, 0.05)
    low = backbone.to(torch.bfloat16)(pixel_values.to(torch.bfloat16))
    assert all(each.dtype == torch.bfloat16 for each in low)
    assert_same_maps(tuple(each.float() for each in low), exact, 0.05)


# Of PyTorch's own making while it traces an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_without_graph_breaks(
    two: tuple[Any, Any], assert_same_maps: Any, assert_same_gradients: Any, loss: Any
) -> None:
    plain, traced = two
    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager", dynamic=False)
    pixel_values = torch.randn(2, 3, 50, 70)
    expected, maps = plain(pixel_values), compiled(pixel_values)
    assert_same_maps(maps.feature_maps, expected.feature_maps)
    loss(expected).backward()
    loss(maps).backward()
    assert_same_gradients(traced, plain)


def test_images_with_other_channels(build: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 5, 32, 32\], expected \[batch, 3, height, width\]"):
        build()(torch.zeros(1, 5, 32, 32))
