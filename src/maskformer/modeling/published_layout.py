"""Where the files on disk differ from our modules: constants that transformers writes and our network does not hold.

`facebook/maskformer-*` and transformers 5.23 store the window index tables, a final norm of the Swin backbone that no
output passes through, the cross entropy's class weights and batch counters. They are ignored on reading (the first two
carry nothing, the others follow from the configuration) and written back, so that transformers finds what it expects.
Its models of 5.10 and later have other names in memory than on disk, so in what `torch.save(model.state_dict())` wrote.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from maskformer.modeling.backbones.resnet import FrozenBatchNorm2d
from maskformer.modeling.backbones.swin import SwinBackbone

IGNORED_ON_READING = [
    r"relative_position_index$",
    r"pixel_level_module\.encoder\.model\.layernorm\.(weight|bias)$",
    r"criterion\.empty_weight$",
    r"normalization\.num_batches_tracked$",
]


def translate(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before `load_state_dict`: any release's state dict becomes ours, without what is ignored on reading."""
    own = model.state_dict(prefix=prefix, keep_vars=True)
    for key in [key for key in state_dict if key.startswith(prefix) and key not in own]:
        value, name = state_dict.pop(key), key.replace(".mlp.fc", ".fc").replace(".o_proj.", ".out_proj.")
        if name in own or not any(re.search(pattern, key) for pattern in IGNORED_ON_READING):
            state_dict[name if name in own else key] = value


def constants(model: nn.Module) -> dict[str, Tensor]:
    """The entries to add to the model's state dict before it is written."""
    entries: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name in ("relative_position_index", "empty_weight"):
            if isinstance(buffer := getattr(module, name, None), Tensor):
                entries[f"{path}.{name}"] = buffer.clone()
        if isinstance(module, SwinBackbone):
            entries[f"{path}.model.layernorm.weight"] = torch.ones(module.channels[-1])
            entries[f"{path}.model.layernorm.bias"] = torch.zeros(module.channels[-1])
        if isinstance(module, FrozenBatchNorm2d):
            entries[f"{path}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return entries
