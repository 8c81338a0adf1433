"""How every weight starts, in one table, after the authors' code: Xavier for the transformers, the "c2" rules of
detectron2 for convolutions, truncated normal for Swin, and PyTorch's own default for the heads.

A rule is found by the module's path, once, when the model is built; `initialize` then needs the module alone, which is
how transformers asks for it. Nothing here touches a tensor directly: the `init` functions handed in skip weights that
came from a checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from maskformer.modeling.backbones.resnet import FrozenBatchNorm2d

# First match wins. Paths are those inside the model, whatever stands before them.
RULES: tuple[tuple[str, str], ...] = (
    (r"encoder\..*embeddings\.patch_embeddings\.projection$", "default"),
    (r"pixel_level_module\.encoder\..*(convolution|conv\d?)$|(^|\.)predictor$", "msra"),
    (r"pixel_level_module\.encoder\.model\.", "truncated_normal"),
    (r"decoder\.(fpn\.|mask_projection$|input_projection$)", "c2_xavier"),
    (r"transformer_module\.input_projection$", "c2_xavier"),
    (r"(transformer_module|pixel_level_module)\.(decoder|decoder\.encoder)\.layers\.", "xavier"),
    (r"queries_embedder$", "standard_normal"),
    (r"(class_predictor|mask_embedder\.\d+\.0)$", "default"),
)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, FrozenBatchNorm2d)
WEIGHTED = (nn.Linear, nn.Conv2d, nn.Embedding)


def assign_rules(model: nn.Module) -> None:
    """Write each module's rule on it. A module without one belongs to a foreign backbone, which knows its own."""
    for path, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            for pattern, rule in RULES:
                if re.search(pattern, path):
                    module.__dict__["initialization_rule"] = rule
                    break


def initialize(module: nn.Module, init: Any, std: float, gain: float) -> None:
    """Fill the module's own tensors. `init` has the in-place functions of `torch.nn.init` under their names."""
    if isinstance(module, NORMS):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
    if isinstance(module, nn.BatchNorm2d):
        init.zeros_(module.num_batches_tracked)
    for name in ("relative_position_bias_table", "position_embeddings"):
        table = getattr(module, name, None)
        if isinstance(table, nn.Parameter):
            init.trunc_normal_(table, std=std)
    # Buffers that are in no checkpoint: after `from_pretrained` they hold garbage until they are set again.
    reset_buffers = getattr(module, "reset_buffers", None)
    if reset_buffers is not None:
        reset_buffers()
    rule = getattr(module, "initialization_rule", None)
    if rule is not None and isinstance(module, WEIGHTED):
        _WEIGHT[rule](init, module.weight, std, gain)
        bias = getattr(module, "bias", None)
        if bias is not None and rule == "default":
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(bias, -bound, bound)
        elif bias is not None:
            init.zeros_(bias)


_WEIGHT: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "truncated_normal": lambda init, weight, std, gain: init.trunc_normal_(weight, std=std),
    "msra": lambda init, weight, std, gain: init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"),
    "c2_xavier": lambda init, weight, std, gain: init.kaiming_uniform_(weight, a=1),
    "xavier": lambda init, weight, std, gain: init.xavier_uniform_(weight, gain=gain),
    "standard_normal": lambda init, weight, std, gain: init.normal_(weight),
    "default": lambda init, weight, std, gain: init.kaiming_uniform_(weight, a=math.sqrt(5)),
}
