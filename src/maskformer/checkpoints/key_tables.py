"""Which weight of the authors is which of ours: one table per part of the network.

Each row pairs a name in the authors' checkpoint with our name, or with the three names (query, key, value) that one
fused weight of theirs is split into along its first dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskformer.checkpoints.loading import architecture_of
from maskformer.configuration import MaskFormerConfig

Row = tuple[str, tuple[str, ...]]

_SWIN_BLOCK = {
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_FEED_FORWARD = {"linear1": "fc1", "linear2": "fc2"}
_ENCODER_LAYER = {"norm1": "self_attn_layer_norm", **_FEED_FORWARD, "norm2": "final_layer_norm"}
_DECODER_LAYER = {
    "norm1": "self_attn_layer_norm",
    "norm2": "encoder_attn_layer_norm",
    **_FEED_FORWARD,
    "norm3": "final_layer_norm",
}


def key_table(config: MaskFormerConfig) -> list[Row]:
    """Every weight of the network `config` describes, under both names.

    Raises:
        ValueError: the backbone is one the authors have no name for.
    """
    kind = architecture_of(config)
    root = "" if kind == "PerPixelBaseline" else "model."
    rows = [*_backbone(config, f"{root}pixel_level_module.encoder")]
    rows += _pixel_decoder(config, f"{root}pixel_level_module.decoder")
    if kind == "PerPixelBaseline":
        return rows + _layer("sem_seg_head.predictor", "predictor")
    rows += _transformer(config)
    for index in range(3):
        rows += _layer(f"sem_seg_head.predictor.mask_embed.layers.{index}", f"mask_embedder.{index}.0")
    if kind != "PerPixelBaselinePlus":
        rows += _layer("sem_seg_head.predictor.class_embed", "class_predictor")
    return rows


def _layer(original: str, ours: str, *fields: str) -> list[Row]:
    return [(f"{original}.{field}", (f"{ours}.{field}",)) for field in fields or ("weight", "bias")]


def _layers(original: str, ours: str, names: dict[str, str]) -> list[Row]:
    return [row for theirs, name in names.items() for row in _layer(f"{original}.{theirs}", f"{ours}.{name}")]


def _attention(original: str, ours: str) -> list[Row]:
    fused = [
        (f"{original}.in_proj_{field}", tuple(f"{ours}.{part}_proj.{field}" for part in "qkv"))
        for field in ("weight", "bias")
    ]
    return fused + _layer(f"{original}.out_proj", f"{ours}.out_proj")


def _backbone(config: MaskFormerConfig, ours: str) -> Iterator[Row]:
    backbone: Any = config.backbone_config
    if backbone.model_type in ("swin", "maskformer-swin") and not backbone.use_absolute_embeddings:
        return _swin(backbone, ours)
    if backbone.model_type == "resnet":
        return _resnet(backbone, ours, config.backbone_stem)
    raise ValueError(
        f"the backbone is {backbone.model_type!r}, expected 'swin' without absolute position embeddings or 'resnet': "
        "the authors' layout has no names for any other"
    )


def _swin(backbone: Any, ours: str) -> Iterator[Row]:
    yield from _layer("backbone.patch_embed.proj", f"{ours}.model.embeddings.patch_embeddings.projection")
    yield from _layer("backbone.patch_embed.norm", f"{ours}.model.embeddings.norm")
    last = len(backbone.depths) - 1
    for stage, depth in enumerate(backbone.depths):
        theirs_stage, our_stage = f"backbone.layers.{stage}", f"{ours}.model.encoder.layers.{stage}"
        for block in range(depth):
            yield from _swin_block(f"{theirs_stage}.blocks.{block}", f"{our_stage}.blocks.{block}", backbone.qkv_bias)
        if stage < last:
            yield from _layer(f"{theirs_stage}.downsample.norm", f"{our_stage}.downsample.norm")
            yield from _layer(f"{theirs_stage}.downsample.reduction", f"{our_stage}.downsample.reduction", "weight")
        yield from _layer(f"backbone.norm{stage}", f"{ours}.hidden_states_norms.{stage}")


def _swin_block(original: str, ours: str, qkv_bias: bool) -> Iterator[Row]:
    attention = f"{ours}.attention.self"
    for field in ("weight", "bias") if qkv_bias else ("weight",):
        yield f"{original}.attn.qkv.{field}", tuple(f"{attention}.{part}.{field}" for part in ("query", "key", "value"))
    yield from _layer(f"{original}.attn", attention, "relative_position_bias_table")
    yield from _layers(original, ours, _SWIN_BLOCK)


def _resnet(backbone: Any, ours: str, stem: str) -> Iterator[Row]:
    embedder = f"{ours}.embedder.embedder"
    for index in range(3 if stem == "deeplab" else 1):
        yield from _convolution(
            f"backbone.stem.conv{index + 1}", f"{embedder}.{index}" if stem == "deeplab" else embedder
        )
    in_width = backbone.embedding_size
    for stage, (depth, width) in enumerate(zip(backbone.depths, backbone.hidden_sizes, strict=True)):
        for block in range(depth):
            # detectron2 counts its stages from res2; the stem is res1.
            original, our_block = f"backbone.res{stage + 2}.{block}", f"{ours}.encoder.stages.{stage}.layers.{block}"
            if block == 0 and (stage > 0 or in_width != width):
                yield from _convolution(f"{original}.shortcut", f"{our_block}.shortcut")
            for index in range(3 if backbone.layer_type == "bottleneck" else 2):
                yield from _convolution(f"{original}.conv{index + 1}", f"{our_block}.layer.{index}")
        in_width = width


def _convolution(original: str, ours: str) -> list[Row]:
    norm = ("weight", "bias", "running_mean", "running_var")
    return [
        *_layer(original, f"{ours}.convolution", "weight"),
        *_layer(f"{original}.norm", f"{ours}.normalization", *norm),
    ]


def _pixel_decoder(config: MaskFormerConfig, ours: str) -> list[Row]:
    # The authors count maps from the finest, 1, to the lowest, 4; the published layout upwards from the lowest.
    original = "sem_seg_head.pixel_decoder"
    rows = _fpn_convolution(f"{original}.layer_4", f"{ours}.fpn.stem")
    for index, number in enumerate((3, 2, 1)):
        rows += _fpn_convolution(f"{original}.adapter_{number}", f"{ours}.fpn.layers.{index}.proj")
        rows += _fpn_convolution(f"{original}.layer_{number}", f"{ours}.fpn.layers.{index}.block")
    rows += _layer(f"{original}.mask_features", f"{ours}.mask_projection")
    if config.pixel_decoder_encoder_layers:
        rows += _layer(f"{original}.input_proj", f"{ours}.input_projection")
    for index in range(config.pixel_decoder_encoder_layers):
        theirs, our_layer = f"{original}.transformer.encoder.layers.{index}", f"{ours}.encoder.layers.{index}"
        rows += _attention(f"{theirs}.self_attn", f"{our_layer}.self_attn")
        rows += _layers(theirs, our_layer, _ENCODER_LAYER)
    return rows


def _fpn_convolution(original: str, ours: str) -> list[Row]:
    return _layer(original, f"{ours}.0", "weight") + _layer(f"{original}.norm", f"{ours}.1")


def _transformer(config: MaskFormerConfig) -> list[Row]:
    original, ours = "sem_seg_head.predictor", "model.transformer_module"
    rows = _layer(f"{original}.query_embed", f"{ours}.queries_embedder", "weight")
    incoming = config.fpn_feature_size if config.pixel_decoder_encoder_layers else config.lowest_width
    if config.enforce_input_projection or incoming != config.decoder_config.d_model:
        rows += _layer(f"{original}.input_proj", f"{ours}.input_projection")
    for index in range(config.decoder_config.decoder_layers):
        theirs, our_layer = f"{original}.transformer.decoder.layers.{index}", f"{ours}.decoder.layers.{index}"
        rows += _attention(f"{theirs}.self_attn", f"{our_layer}.self_attn")
        rows += _attention(f"{theirs}.multihead_attn", f"{our_layer}.encoder_attn")
        rows += _layers(theirs, our_layer, _DECODER_LAYER)
    return rows + _layer(f"{original}.transformer.decoder.norm", f"{ours}.decoder.layernorm")
