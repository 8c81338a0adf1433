"""Between the authors' layout of weights and ours, in both directions, without loss.

Not weights, and dropped: the loss's buffers, the images' mean and standard deviation (they belong to the processor)
and Swin's index tables (they follow from the window size).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from maskformer.checkpoints.architecture import read_config
from maskformer.checkpoints.key_tables import key_table
from maskformer.checkpoints.loading import architecture_of
from maskformer.configuration import MaskFormerConfig
from maskformer.modeling.backbones.swin import relative_position_index

_NOT_WEIGHTS = re.compile(r"^criterion\.|^pixel_(mean|std)$|relative_position_index$|num_batches_tracked$")
# What state dicts in our layout hold besides weights, see `modeling/published_layout.py`.
CONSTANTS = re.compile(
    r"^criterion\.|relative_position_index$|num_batches_tracked$|encoder\.model\.layernorm\.(weight|bias)$"
)
_HEAD = "sem_seg_head."


def from_original(
    weights: Mapping[str, Tensor], attention_heads: int = 8
) -> tuple[MaskFormerConfig, dict[str, Tensor]]:
    """Configuration and state dict, in our layout, of the authors' `weights`.

    Args:
        weights: by the authors' names, as `unpickling.read_weights` gives them.
        attention_heads: heads of the transformer's attention, the one number that is not in the shapes.

    Raises:
        ValueError: these are not the weights of a MaskFormer, one is missing, or one would be left unused.
    """
    weights = canonical(weights)
    config = read_config(weights, attention_heads)
    table = key_table(config)
    _check_keys({original for original, _ in table}, weights, "the checkpoint")
    state: dict[str, Tensor] = {}
    for original, ours in table:
        state |= split(original, weights[original], ours)
    return config, state


def split(original: str, weight: Tensor, ours: tuple[str, ...]) -> dict[str, Tensor]:
    """A weight of the authors by our name, or its query, key and value by our three names.

    Raises:
        ValueError: it has no three parts of one size.
    """
    if len(ours) == 1:
        return {ours[0]: weight}
    if weight.ndim == 0 or weight.shape[0] % len(ours):
        raise ValueError(
            f"the weight {original!r} has shape {list(weight.shape)}, expected {len(ours)} parts of equal size "
            "along the first dimension: query, key and value"
        )
    # A clone of its own for each part: the file format refuses tensors that share memory.
    return {name: part.clone() for name, part in zip(ours, weight.chunk(len(ours)), strict=True)}


def canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under the newest of the authors' names, without what is no weight.

    In files from before their pixel decoder had a name, its weights lie in the head directly; their loader moves
    everything there that is not the predictor's.
    """
    renamed: dict[str, Tensor] = {}
    for key, weight in weights.items():
        if _NOT_WEIGHTS.search(key):
            continue
        part = key.removeprefix(_HEAD)
        if part != key and not part.startswith(("predictor.", "pixel_decoder.")):
            key = f"{_HEAD}pixel_decoder.{part}"
        renamed[key] = weight
    return renamed


def to_original(config: MaskFormerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the authors' layout, Swin's index tables included.

    Raises:
        ValueError: the authors' layout has no name for a weight or for the backbone, a weight is missing, or their
            network with these weights computes something else.
    """
    state = {key: weight for key, weight in state.items() if not CONSTANTS.search(key)}
    table = key_table(config)
    _check_keys({name for _, ours in table for name in ours}, state, "the model")
    weights: dict[str, Tensor] = {}
    for original, ours in table:
        parts = [state[name] for name in ours]
        weights[original] = torch.cat(parts) if len(parts) > 1 else parts[0]
        if original.endswith(".relative_position_bias_table"):
            index_key = original.replace("bias_table", "index")
            weights[index_key] = relative_position_index(config.backbone_config.window_size)
    _check_unsaid(config, weights)
    return weights


def _check_unsaid(config: MaskFormerConfig, weights: Mapping[str, Tensor]) -> None:
    """Whoever reads the weights takes what no shape tells to be as in the authors' networks."""
    decoder: Any = config.decoder_config
    attends, encodes = architecture_of(config) != "PerPixelBaseline", config.pixel_decoder_encoder_layers > 0
    heads = decoder.decoder_attention_heads if attends else decoder.encoder_attention_heads
    read = read_config(canonical(weights), heads)
    of_backbone = ("hidden_act", "layer_norm_eps", "downsample_in_first_stage", "downsample_in_bottleneck")
    unsaid = [("backbone_config", name) for name in of_backbone]
    if attends or encodes:
        unsaid.append(("decoder_config", "activation_function"))
    if attends and encodes:
        unsaid.append(("decoder_config", "encoder_attention_heads"))
    for part, name in unsaid:
        value, expected = (getattr(getattr(each, part), name, None) for each in (config, read))
        if value != expected:
            raise ValueError(
                f"{part}.{name} is {value!r}, expected {expected!r}: the authors' layout cannot say otherwise"
            )


def _check_keys(expected: set[str], found: Mapping[str, Tensor], whose: str) -> None:
    missing, unused = expected - found.keys(), found.keys() - expected
    if missing or unused:
        lacks = [f"lacks {_listed(missing)}"] if missing else []
        holds = [f"holds {_listed(unused)}, which would be left unused"] if unused else []
        raise ValueError(f"{whose} {' and '.join(lacks + holds)}: its architecture is not one of the authors'")


def _listed(keys: Iterable[str], limit: int = 3) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(repr(key) for key in ordered[:limit]) + more
