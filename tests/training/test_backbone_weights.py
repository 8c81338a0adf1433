"""Backbones of transformers and of the authors' files go into the network; what does not fit is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import transformers

from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation
from maskformer.checkpoints.key_tables import key_table
from maskformer.data.scene_set import SceneDataset
from maskformer.training import network as network_room
from maskformer.training.backbone_weights import load_backbone
from maskformer.training.config import build_config
from maskformer.training.network import build_network, encoder_of

from ..networks import STAGES

SIZES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "out_features": STAGES}
SWIN = transformers.SwinConfig(
    embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, out_features=STAGES
)
RESNET = transformers.ResNetConfig(embedding_size=8, **SIZES)
CONVNEXT = transformers.ConvNextConfig(**SIZES)
SOURCES = {
    "swin": (SWIN, transformers.SwinForImageClassification),
    "resnet": (RESNET, transformers.ResNetForImageClassification),
    "convnext": (CONVNEXT, transformers.ConvNextForImageClassification),
}


def small_model(backbone, **fields):
    decoder = {"model_type": "detr", "d_model": 32, "decoder_layers": 1, "num_queries": 4}
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16, **fields
    )
    return MaskFormerForInstanceSegmentation(config).eval()


def save_source(directory: Path, kind: str):
    config, cls = SOURCES[kind]
    torch.manual_seed(3)
    model = cls(config).eval()
    for module in model.modules():  # statistics that a load which forgets them would not have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("kind", SOURCES)
def test_stages_equal_those_of_transformers(tmp_path, kind) -> None:
    source = save_source(tmp_path / kind, kind)
    model = small_model(SOURCES[kind][0])
    told = load_backbone(encoder_of(model), model.config, source)
    backbone = getattr(transformers, f"{type(SOURCES[kind][0]).__name__.removesuffix('Config')}Backbone")
    theirs = backbone.from_pretrained(source).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, expected = encoder_of(model)(pixel_values).feature_maps, theirs(pixel_values).feature_maps
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert f"weights are from {source}" in told[0]
    assert "classifier" in told[1]
    assert (len(told) == 3) == (kind != "resnet")  # the norms of the outputs are new
    assert told[2:] == [] or "hidden_states_norms" in told[2]


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_files_of_the_authors_backbones(tmp_path, kind) -> None:
    torch.manual_seed(1)
    first, second = small_model(SOURCES[kind][0]), small_model(SOURCES[kind][0])
    state, weights = first.state_dict(), {}
    for original, ours in key_table(first.config):
        if original.startswith("backbone.") and not original.startswith("backbone.norm"):
            weights[original.removeprefix("backbone.")] = torch.cat([state[name] for name in ours])
    weights["norm.weight" if kind == "swin" else "stem.fc.weight"] = torch.ones(3)
    if kind == "swin":
        torch.save({"model": weights}, tmp_path / "backbone.pth")
    else:
        del weights["stem.fc.weight"]
        arrays = {name: value.numpy() for name, value in weights.items()}
        (tmp_path / "backbone.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision"}))
    (source,) = (str(path) for path in tmp_path.iterdir())
    load_backbone(encoder_of(second), second.config, source)
    for name, value in encoder_of(first).state_dict().items():
        torch.testing.assert_close(encoder_of(second).state_dict()[name], value, msg=name)


def other(kind: str, **fields):
    config = SOURCES[kind][0]
    return type(config)(**{**config.to_dict(), **fields})


@pytest.mark.parametrize(
    ("kind", "backbone", "fields"),
    [
        ("swin", RESNET, {}),
        ("resnet", SWIN, {}),
        ("swin", other("swin", embed_dim=16), {}),
        ("swin", other("swin", window_size=8), {}),
        ("swin", other("swin", depths=[1, 1, 1, 1]), {}),
        ("swin", other("swin", depths=[1, 2, 2, 1]), {}),
        ("resnet", other("resnet", layer_type="basic"), {}),
        ("resnet", RESNET, {"backbone_stem": "deeplab"}),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, kind, backbone, fields) -> None:
    model = small_model(backbone, **fields)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source = save_source(tmp_path / "source", kind)
    with pytest.raises(ValueError, match="does not fit the network's") as caught:
        load_backbone(encoder_of(model), model.config, source)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch) -> None:
    model = small_model(RESNET)
    with pytest.raises(ValueError, match=r"holds no weights, expected model\.safetensors"):
        load_backbone(encoder_of(model), model.config, str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone(encoder_of(model), model.config, str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match="cannot be had from the hub"):
        load_backbone(encoder_of(model), model.config, "someone/resnet")


def test_the_setting(tmp_path, monkeypatch) -> None:
    source = save_source(tmp_path / "source", "resnet")
    monkeypatch.setattr(network_room, "_from_architecture", lambda name, fields: small_model(RESNET))
    fields = {"data": "scenes", "out": "o", "backbone_weights": source}
    model, told = build_network(build_config({**fields, "network": "r50"}), SceneDataset(2))
    expected = transformers.ResNetModel.from_pretrained(source).state_dict()
    for name, value in encoder_of(model).state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert any(source in sentence for sentence in told)
    with pytest.raises(ValueError, match="model scenes has a backbone already"):
        build_config({**fields, "model": "scenes"})
