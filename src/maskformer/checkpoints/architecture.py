"""Reads the architecture of an authors' checkpoint from the shapes of its weights.

All there is to know is in the shapes but one number: how many heads the transformer's attention has (8 in everything
the authors published). Settings of training alone (dropout, drop path) are those of the published models.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskformer.checkpoints.loading import architecture_of
from maskformer.checkpoints.zoo import ZooEntry, list_zoo
from maskformer.configuration import MaskFormerConfig, PerPixelBaselineConfig

# Every published model trains with these (paper appendix, "Training settings").
_DROPOUT = 0.1
_SWIN_DROP_PATH = 0.3

_PREDICTOR = "sem_seg_head.predictor"
_PIXEL_DECODER = "sem_seg_head.pixel_decoder"


class _Shapes:
    """The shapes of the weights, with errors that name the weight that was looked for."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self._shapes = {key: tuple(value.shape) for key, value in weights.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def of(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self._shapes:
            raise ValueError(
                f"the checkpoint has no weight {key!r}, which a MaskFormer of this kind has: "
                "expected a checkpoint of the authors' MaskFormer with a Swin or ResNet backbone"
            )
        shape = self._shapes[key]
        if len(shape) != dimensions or 0 in shape:
            raise ValueError(
                f"the weight {key!r} has shape {list(shape)}, expected {dimensions} dimensions, none empty"
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered parts follow `prefix`; gaps are found later, as missing weights."""
        numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
        found = [int(match[1]) for match in map(numbered.match, self._shapes) if match]
        return max(found, default=-1) + 1


def read_config(weights: Mapping[str, Tensor], attention_heads: int = 8) -> MaskFormerConfig:
    """The configuration of the network that `weights` belong to.

    Args:
        weights: the authors' names (see `original.canonical`) and tensors.
        attention_heads: heads of the attention in the transformer decoder and the pixel decoder's encoder.

    Raises:
        ValueError: these are not the weights of a MaskFormer or per-pixel baseline, or the heads do not divide.
    """
    shapes = _Shapes(weights)
    fields: dict[str, Any] = {**_backbone(shapes), **_pixel_decoder(shapes), "deep_supervision": True}
    decoder = _decoder(shapes)
    attending = [decoder["d_model"]] if decoder else []
    if fields["pixel_decoder_encoder_layers"]:
        attending.append(fields["fpn_feature_size"])
        hidden = shapes.of(f"{_PIXEL_DECODER}.transformer.encoder.layers.0.linear1.weight", 2)[0]
        decoder["encoder_ffn_dim"] = hidden
    for width in attending:
        if attention_heads < 1 or width % attention_heads:
            raise ValueError(
                f"attention_heads is {attention_heads}, expected a divisor of the transformer's width {width}: "
                "the number is not in the checkpoint, give the one it was trained with"
            )
        decoder |= {"encoder_attention_heads": attention_heads, "decoder_attention_heads": attention_heads}
    fields["decoder_config"] = {
        "model_type": "detr",
        "dropout": _DROPOUT,
        "attention_dropout": _DROPOUT,
        "activation_dropout": _DROPOUT,
        **decoder,
    }
    projection = f"{_PREDICTOR}.input_proj.weight"
    if projection in shapes:
        width, incoming, *_ = shapes.of(projection, 4)
        fields["enforce_input_projection"] = width == incoming  # it is needed where they differ
    return _config_of_kind(shapes, fields)


def _config_of_kind(shapes: _Shapes, fields: dict[str, Any]) -> MaskFormerConfig:
    if f"{_PREDICTOR}.class_embed.weight" in shapes:
        num_labels = shapes.of(f"{_PREDICTOR}.class_embed.weight", 2)[0] - 1  # the last row is "no object"
        return MaskFormerConfig(**fields, num_labels=num_labels, architectures=["MaskFormerForInstanceSegmentation"])
    if f"{_PREDICTOR}.query_embed.weight" in shapes:
        num_labels = shapes.of(f"{_PREDICTOR}.query_embed.weight", 2)[0]  # its queries are the classes
        return PerPixelBaselineConfig(**fields, num_labels=num_labels, architectures=["PerPixelBaselinePlus"])
    num_labels = shapes.of(f"{_PREDICTOR}.weight", 4)[0]
    return PerPixelBaselineConfig(**fields, num_labels=num_labels, architectures=["PerPixelBaseline"])


def _backbone(shapes: _Shapes) -> dict[str, Any]:
    if "backbone.patch_embed.proj.weight" in shapes:
        return {"backbone_config": _swin(shapes)}
    stem = "deeplab" if "backbone.stem.conv3.weight" in shapes else "basic"
    return {"backbone_config": _resnet(shapes, stem), "backbone_norm": "frozen", "backbone_stem": stem}


def _swin(shapes: _Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes.of("backbone.patch_embed.proj.weight", 4)
    stages = range(4)
    tables = [shapes.of(f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in stages]
    # A window of w x w cells has (2w - 1)^2 relative positions.
    window = (math.isqrt(tables[0][0]) + 1) // 2
    return {
        "model_type": "swin",
        "image_size": 384 if window == 12 else 224,
        "num_channels": channels,
        "patch_size": patch,
        "embed_dim": width,
        "depths": [shapes.count(f"backbone.layers.{stage}.blocks.") for stage in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": window,
        "mlp_ratio": shapes.of("backbone.layers.0.blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": "backbone.layers.0.blocks.0.attn.qkv.bias" in shapes,
        "drop_path_rate": _SWIN_DROP_PATH,
        "out_features": [f"stage{stage + 1}" for stage in stages],
    }


def _resnet(shapes: _Shapes, stem: str) -> dict[str, Any]:
    channels = shapes.of("backbone.stem.conv1.weight", 4)[1]
    last_of_stem = "conv3" if stem == "deeplab" else "conv1"
    is_bottleneck = "backbone.res2.0.conv3.weight" in shapes
    last = "conv3" if is_bottleneck else "conv2"
    stages = [f"backbone.res{number}" for number in range(2, 6)]
    return {
        "model_type": "resnet",
        "num_channels": channels,
        "embedding_size": shapes.of(f"backbone.stem.{last_of_stem}.weight", 4)[0],
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "depths": [shapes.count(f"{stage}.") for stage in stages],
        "hidden_sizes": [shapes.of(f"{stage}.0.{last}.weight", 4)[0] for stage in stages],
        "out_features": [f"stage{number}" for number in range(1, 5)],
    }


def _pixel_decoder(shapes: _Shapes) -> dict[str, Any]:
    return {
        "fpn_feature_size": shapes.of(f"{_PIXEL_DECODER}.layer_1.weight", 4)[0],
        "mask_feature_size": shapes.of(f"{_PIXEL_DECODER}.mask_features.weight", 4)[0],
        "pixel_decoder_encoder_layers": shapes.count(f"{_PIXEL_DECODER}.transformer.encoder.layers."),
    }


def _decoder(shapes: _Shapes) -> dict[str, int]:
    if f"{_PREDICTOR}.query_embed.weight" not in shapes:
        return {}
    num_queries, width = shapes.of(f"{_PREDICTOR}.query_embed.weight", 2)
    hidden = shapes.of(f"{_PREDICTOR}.transformer.decoder.layers.0.linear1.weight", 2)[0]
    return {
        "num_queries": num_queries,
        "d_model": width,
        "decoder_layers": shapes.count(f"{_PREDICTOR}.transformer.decoder.layers."),
        "decoder_ffn_dim": hidden,
        "encoder_ffn_dim": hidden,  # says nothing without an encoder
    }


def recognise(config: MaskFormerConfig) -> ZooEntry | None:
    """The published model that has exactly this architecture and number of classes, or None; the 30 all differ."""
    return _published().get(_fingerprint(config))


@functools.cache
def _published() -> dict[tuple[Any, ...], ZooEntry]:
    return {_fingerprint(MaskFormerConfig.from_zoo(entry["name"])): entry for entry in list_zoo()}


def _fingerprint(config: MaskFormerConfig) -> tuple[Any, ...]:
    backbone, decoder = config.backbone_config, config.decoder_config
    of_backbone = ("depths", "embed_dim", "num_heads", "window_size", "hidden_sizes", "embedding_size", "layer_type")
    of_decoder = ("num_queries", "d_model", "decoder_layers", "decoder_ffn_dim")
    kind = architecture_of(config)
    return (
        kind,
        backbone.model_type,
        *(str(getattr(backbone, field, None)) for field in of_backbone),
        *(getattr(decoder, field) for field in of_decoder if kind != "PerPixelBaseline"),
        config.backbone_stem,
        config.num_labels,
        config.fpn_feature_size,
        config.mask_feature_size,
        config.pixel_decoder_encoder_layers,
    )
