"""A backbone's weights from a checkpoint of the backbone alone, as published recipes start (paper section 4).

Two kinds of source: a checkpoint of transformers (a directory or an id on the hub, such as
microsoft/swin-tiny-patch4-window7-224 or microsoft/resnet-50), whose names are ours behind a prefix; and a `.pkl` or
`.pth` file in the layout of the authors' backbones (detectron2's R-50.pkl, Microsoft's swin_tiny_*.pth).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskformer.checkpoints.key_tables import key_table
from maskformer.checkpoints.original import CONSTANTS, split
from maskformer.checkpoints.unpickling import first_line, read_weights


def load_backbone(encoder: nn.Module, config: Any, source: str) -> list[str]:
    """Fills a backbone; sentences about what was loaded, and what was not used or starts at random.

    Args:
        encoder: the backbone of a network.
        config: that network's configuration.
        source: see the file.

    Raises:
        ValueError: it cannot be read, or is of another architecture or size.
    """
    path = Path(source).expanduser()
    theirs = _by_our_names(read_weights(path), config) if path.is_file() else _read_transformers(path, source)
    # Only Swin has its modules under "model.", beside the norms of its outputs.
    state = encoder.state_dict()
    own = {name.removeprefix("model."): name for name in state if not CONSTANTS.search(name)}
    names = [name for name in theirs if not CONSTANTS.search(name)]
    prefixes = {"", *(f"{_part(name)}." for name in names)}
    prefix = max(sorted(prefixes), key=lambda each: sum(each + name in theirs for name in own))
    given = {name.removeprefix(prefix): name for name in names}
    found, unused = own.keys() & given.keys(), given.keys() - own.keys()
    # What is missing or left over inside of a part that both have means another architecture.
    parts = {_part(name) for name in own} & {_part(name) for name in given}
    odd = sorted(name for name in own.keys() ^ given.keys() if _part(name) in parts)
    odd += sorted(name for name in found if state[own[name]].shape != theirs[given[name]].shape)
    if odd or not found:
        what = f"{odd[0]!r} is only in one of them or of another shape" if odd else "no weight has a name in common"
        raise ValueError(
            f"backbone_weights {source} does not fit the network's {config.backbone_config.model_type} backbone: "
            f"{what}; give weights of the same architecture and size, or another network"
        )
    encoder.load_state_dict({own[name]: theirs[given[name]] for name in found}, strict=False)
    told = [f"backbone: {len(found)} weights are from {source}"]
    if unused:
        left = sorted(given[name] for name in unused)
        told.append(f"not used of {source}: {', '.join(left[:4])}{' and others' * (len(left) > 4)}")
    anew = sorted({_part(own[name]) for name in own.keys() - found})
    return [*told, *([f"backbone: started anew are {', '.join(anew)}"] if anew else [])]


def _part(name: str) -> str:
    return name.partition(".")[0]


def _read_transformers(path: Path, source: str) -> dict[str, Tensor]:
    """The weights in the files of a directory, or of an id on the hub."""
    read_bin = functools.partial(torch.load, map_location="cpu", weights_only=True)
    for pattern, read in (("*.safetensors", load_file), ("pytorch_model*.bin", read_bin)):
        folder = path if path.is_dir() else _fetched(source, pattern)
        try:
            weights = {name: value for file in sorted(folder.glob(pattern)) for name, value in read(file).items()}
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"backbone_weights {source} cannot be read: {first_line(error)}") from error
        if weights:
            return weights
    raise ValueError(f"backbone_weights {source} holds no weights, expected model.safetensors in it")


def _fetched(source: str, pattern: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=pattern))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"backbone_weights {source} is no directory or file here, and cannot be had from the hub: it does not "
            "exist there, needs a log-in, or cannot be reached"
        ) from error


def _by_our_names(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Authors' names to those of the encoder; the rest keeps its name."""
    named = dict(weights)
    for original, ours in key_table(config):
        name = original.removeprefix("backbone.")
        if name != original and name in named:
            for key, part in split(name, named.pop(name), ours).items():
                named[key.partition("pixel_level_module.encoder.")[2].removeprefix("model.")] = part
    return named
