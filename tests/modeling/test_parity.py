"""Against transformers 5.23, weights through saved checkpoints in both directions."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerModel

from .conftest import BACKBONES, labels, small_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def relative_error(ours: torch.Tensor, peers: torch.Tensor) -> float:
    return float((ours - peers).abs().max() / peers.abs().max().clamp(min=1e-6))


def load_peer(directory: Path) -> transformers.MaskFormerForInstanceSegmentation:
    return transformers.MaskFormerForInstanceSegmentation.from_pretrained(directory, attn_implementation="eager")


def as_tuple(value: object) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else value  # type: ignore[return-value]


@pytest.mark.parametrize("size", [(64, 96), (97, 131)], ids=["even", "odd"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs(backbone: str, size: tuple[int, int], peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint(backbone)
    peer = load_peer(directory).eval()
    ours = MaskFormerForInstanceSegmentation.from_pretrained(directory).eval()
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = peer(pixel_values, output_hidden_states=True, output_attentions=True)
        output = ours(pixel_values, output_hidden_states=True, output_attentions=True)
    assert set(expected.keys()) == set(output.keys()) - {"cross_attentions"}
    for name in expected:
        theirs = as_tuple(expected[name])
        for mine, other in zip(as_tuple(output[name]), theirs, strict=True):
            assert relative_error(mine, other) < 2e-5, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_loss_and_gradients(backbone: str, peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint(backbone)
    peer = load_peer(directory).eval()
    ours = MaskFormerForInstanceSegmentation.from_pretrained(directory).eval()
    pixel_values = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(3))
    targets = labels([(97, 131), (97, 131)], [3, 2])
    expected = peer(pixel_values, **targets).loss
    loss = ours(pixel_values, **targets).loss
    assert relative_error(loss.detach(), expected.detach()) < 2e-5
    expected.backward()
    loss.backward()

    def norm(model: torch.nn.Module) -> torch.Tensor:
        return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()

    assert relative_error(norm(ours), norm(peer)) < 1e-4


@pytest.mark.parametrize("backbone", ["swin-window7", "resnet-basic", "convnext"])
def test_transformers_reads_what_we_write(
    backbone: str, tmp_path: Path, peer_checkpoint: Callable[[str], Path]
) -> None:
    directory = peer_checkpoint(backbone)
    MaskFormerForInstanceSegmentation.from_pretrained(directory).save_pretrained(tmp_path)
    peer, report = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = load_peer(directory).eval()(pixel_values).masks_queries_logits
        assert relative_error(peer.eval()(pixel_values).masks_queries_logits, expected) < 2e-5


@pytest.mark.parametrize("backbone", ["swin-window7", "resnet-basic"])
def test_files_have_the_same_keys(backbone: str, tmp_path: Path, peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint(backbone)
    ours, report = MaskFormerForInstanceSegmentation.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours.save_pretrained(tmp_path)
    theirs, mine = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(mine) == set(theirs)
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        if not name.endswith(("layernorm.weight", "layernorm.bias", "num_batches_tracked")):
            assert torch.equal(mine[name], tensor), name


def test_weights_to_save_may_be_given_by_place(tmp_path: Path) -> None:
    model = MaskFormerForInstanceSegmentation(small_config("resnet-basic"))
    weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, True, weights)  # as transformers has it: is_main_process, state_dict
    assert not load_file(tmp_path / "model.safetensors")["class_predictor.bias"].any()


@pytest.mark.parametrize("kept", ["in memory", "on disk"])  # transformers' names differ between the two
@pytest.mark.parametrize("backbone", ["swin-window7", "resnet-basic"])
def test_state_dicts_of_transformers_load(backbone: str, kept: str, peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint(backbone)
    peer = load_peer(directory).eval()
    state = peer.state_dict() if kept == "in memory" else load_file(directory / "model.safetensors")
    # the copy has to have a hook of its own; a wrapper (as of Lightning) puts a prefix in front of every name
    wrapper = torch.nn.ModuleDict({"net": copy.deepcopy(MaskFormerForInstanceSegmentation(small_config(backbone)))})
    wrapper.load_state_dict({f"net.{name}": tensor for name, tensor in state.items()})
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, output = peer(pixel_values), wrapper["net"].eval()(pixel_values)
    assert relative_error(output.masks_queries_logits, expected.masks_queries_logits) < 2e-5
    with pytest.raises(RuntimeError, match=r"Unexpected key.*another"):
        wrapper["net"].load_state_dict({**state, "another": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*class_predictor.bias"):
        wrapper["net"].load_state_dict({name: state[name] for name in state if name != "class_predictor.bias"})


def test_base_model_out_of_the_whole(peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint("swin-window4")
    base = MaskFormerModel.from_pretrained(directory).eval()
    whole = MaskFormerForInstanceSegmentation.from_pretrained(directory).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole(pixel_values).transformer_decoder_last_hidden_state
        assert torch.equal(base(pixel_values).transformer_decoder_last_hidden_state, expected)


def test_return_dict_false_gives_the_peers_tuple(peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint("resnet-basic")
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = load_peer(directory).eval()(pixel_values, return_dict=False)
        output = MaskFormerForInstanceSegmentation.from_pretrained(directory).eval()(pixel_values, return_dict=False)
    assert [tuple(value.shape) for value in output] == [tuple(value.shape) for value in expected]


def test_a_configuration_of_transformers_class(tmp_path: Path, peer_checkpoint: Callable[[str], Path]) -> None:
    directory = peer_checkpoint("resnet-basic")
    config = transformers.AutoConfig.from_pretrained(directory, id2label={0: "sky", 1: "sea"}, mask_weight=5.0)
    model = MaskFormerForInstanceSegmentation.from_pretrained(directory, config=config, ignore_mismatched_sizes=True)
    assert (type(model.config), model.config.id2label) == (MaskFormerConfig, config.id2label)
    assert model.model.config is model.config
    assert (model.class_predictor.out_features, model.weight_dict["loss_mask"]) == (3, 5.0)
    assert MaskFormerModel(config).config.mask_weight == 5.0
    model.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == config.id2label


def test_configuration_file_is_the_peers(peer_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    directory = peer_checkpoint("resnet-basic")
    config = MaskFormerConfig.from_pretrained(directory)
    config.save_pretrained(tmp_path)
    peer = transformers.MaskFormerConfig.from_pretrained(directory)
    again = transformers.MaskFormerConfig.from_pretrained(tmp_path)
    assert again.to_dict() == peer.to_dict()
