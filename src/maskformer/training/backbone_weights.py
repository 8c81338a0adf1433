"""A backbone's weights from a checkpoint of the backbone alone, as published recipes start (paper section 4).

Two kinds of source: a checkpoint of transformers (a directory or an id on the hub, such as
microsoft/swin-tiny-patch4-window7-224 or microsoft/resnet-50), whose names are ours behind a prefix; and a `.pkl` or
`.pth` file in the layout of the authors' backbones (detectron2's R-50.pkl, Microsoft's swin_tiny_*.pth).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskformer.checkpoints.key_tables import key_table
from maskformer.checkpoints.unpickling import read_weights

# Follow from the window size, or count batches that nobody needs to have counted.
_NOT_WEIGHTS = ("relative_position_index", "num_batches_tracked")


def load_backbone(encoder: nn.Module, config: Any, source: str) -> list[str]:
    """Fills a backbone; sentences about what was loaded, and what was not used or starts at random.

    Args:
        encoder: the backbone of a network.
        config: that network's configuration.
        source: see the file.

    Raises:
        ValueError: it cannot be read, or is of another architecture or size.
    """
    own = {name: value for name, value in encoder.state_dict().items() if not name.endswith(_NOT_WEIGHTS)}
    path = Path(source).expanduser()
    theirs = _by_our_names(read_weights(path), config) if path.is_file() else _read_transformers(path, source)
    theirs = {name: value for name, value in theirs.items() if not name.endswith(_NOT_WEIGHTS)}
    # Only Swin has its modules under "model.", beside the norms of its outputs.
    bare = {name.removeprefix("model."): name for name in own}
    prefixes = {"", *(name.partition(".")[0] + "." for name in theirs)}
    prefix = max(sorted(prefixes), key=lambda each: sum(each + name in theirs for name in bare))
    found = {name: prefix + short for short, name in bare.items() if prefix + short in theirs}
    # What is missing or left over inside of a part that both have means another architecture.
    parts = {short.partition(".")[0] for short in bare}
    parts &= {name.removeprefix(prefix).partition(".")[0] for name in theirs}
    odd = [name for short, name in bare.items() if name not in found and short.partition(".")[0] in parts]
    unused = sorted(theirs.keys() - set(found.values()))
    odd += [name for name in unused if name.removeprefix(prefix).partition(".")[0] in parts]
    odd += [name for name, key in found.items() if own[name].shape != theirs[key].shape]
    if odd or not found:
        what = f"{odd[0]!r} is only in one of them or of another shape" if odd else "no weight has a name in common"
        raise ValueError(
            f"backbone_weights {source} does not fit the network's {config.backbone_config.model_type} backbone: "
            f"{what}; give weights of the same architecture and size, or another network"
        )
    encoder.load_state_dict({name: theirs[key] for name, key in found.items()}, strict=False)
    told = [f"backbone: {len(found)} weights are from {source}"]
    if unused:
        told.append(f"not used of {source}: {', '.join(unused[:4])}{' and others' * (len(unused) > 4)}")
    anew = sorted({name.partition(".")[0] for name in own if name not in found})
    return [*told, *([f"backbone: started anew are {', '.join(anew)}"] if anew else [])]


def _read_transformers(path: Path, source: str) -> dict[str, Tensor]:
    """The weights in the files of a directory, or of an id on the hub."""
    try:
        folder = path if path.is_dir() else _fetched(source)
        files = sorted(folder.glob("*.safetensors"))
        if files:
            return {name: value for file in files for name, value in load_file(file).items()}
        files = sorted(folder.glob("pytorch_model*.bin"))
        weights = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"backbone_weights {source} cannot be read: {str(error).splitlines()[0]}") from error
    if not weights:
        raise ValueError(f"backbone_weights {source} holds no weights, expected model.safetensors in it")
    return {name: value for part in weights for name, value in part.items()}


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors"]))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(source, allow_patterns=["pytorch_model*.bin"]))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"backbone_weights {source} is no directory or file here, and cannot be had from the hub: it does not "
            "exist there, needs a log-in, or cannot be reached"
        ) from error


def _by_our_names(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Authors' names to those of the encoder; the rest keeps its name."""
    left, named = dict(weights), {}
    for original, ours in key_table(config):
        name = original.removeprefix("backbone.")
        if name == original or name not in left:
            continue
        parts = left.pop(name).chunk(len(ours)) if len(ours) > 1 else (left.pop(name),)
        named |= {key.partition("pixel_level_module.encoder.")[2].removeprefix("model."): part
                  for key, part in zip(ours, parts, strict=True)}  # fmt: skip
    return {**left, **named}
