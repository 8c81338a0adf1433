"""AdamW in groups, and the learning rate of each step (paper section 4, "Training settings").

As in the authors' code: normalisation layers, embeddings and Swin's tables have a weight decay of their own, biases
that of the weights, unless they are given one; the backbone's learning rate has a factor. Schedules are functions of
the step alone, so nothing of them needs saving.
"""

from __future__ import annotations

import bisect
import math
from typing import Any

import torch
from torch import nn

from maskformer.training.config import TrainingConfig

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TABLES = ("relative_position_bias_table", "position_embeddings")


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups for AdamW of the parameters that are to be learnt, each with its `scale` of the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = config.weight_decay
            if isinstance(module, _NORMS):
                decay = config.weight_decay_norm
            elif name in _TABLES or isinstance(module, nn.Embedding):
                decay = config.weight_decay_embed
            elif name.endswith("bias") and config.weight_decay_bias is not None:
                decay = config.weight_decay_bias
            scale = config.backbone_multiplier if "pixel_level_module.encoder" in path else 1.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale, "lr": peak_rate(config) * scale}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the groups."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=peak_rate(config))


def peak_rate(config: TrainingConfig) -> float:
    """The learning rate, scaled with the batch."""
    return config.learning_rate * config.batch_size / config.reference_batch


def rate_line(config: TrainingConfig) -> str:
    """What becomes of the learning rate, in words."""
    return (
        f"learning rate {config.learning_rate:g} x {config.batch_size}/{config.reference_batch} (batch / batch of "
        f"the recipe) = {peak_rate(config):g}, backbone x {config.backbone_multiplier:g}"
    )


def rate_share(config: TrainingConfig, step: int) -> float:
    """The share of the learning rate at a step, counted from 0.

    Warm-up and poly are multiplied, and the milestones counted from the start, as in detectron2. Cosine falls from the
    end of the warm-up, whose last step has the whole rate.
    """
    done, warm_up = step / config.steps, config.warm_up_steps
    if config.schedule == "poly":
        share = max((1 - done) ** config.poly_power, config.final_share)
    elif config.schedule == "cosine":
        warm_up, done = max(0, warm_up - 1), max(0.0, step - warm_up) / max(1, config.steps - warm_up)
        share = config.final_share + (1 - config.final_share) * (1 + math.cos(math.pi * done)) / 2
    else:
        milestones = sorted(round(share * config.steps) for share in config.milestones)
        share = config.gamma ** bisect.bisect_right(milestones, step)
    if step < warm_up:
        warmth = step / warm_up
        share *= config.warm_up_factor * (1 - warmth) + warmth
    return share


def set_rate(optimizer: Any, config: TrainingConfig, step: int) -> float:
    """Sets the learning rate of a step in every group; returns it without the groups' factors."""
    rate = peak_rate(config) * rate_share(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate
