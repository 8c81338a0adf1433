"""The options that several commands have: what the help shows for their values, and which values cannot be."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maskformer.cli import UsageError

# The help shows no default where None stands for one that it describes in words.
optional = functools.partial(tyro.conf.arg, help_behavior_hint="")

Task = Annotated[Literal["semantic", "instance", "panoptic"] | None, optional(metavar="semantic|instance|panoptic")]
Split = Annotated[str | None, optional(metavar="train|val|test")]
Share = Annotated[float | None, optional(metavar="SHARE")]
Pixels = Annotated[int | None, optional(metavar="PIXELS")]
Name = Annotated[str | None, optional(metavar="NAME")]
File = Annotated[Path | None, optional(metavar="FILE")]
Json = Annotated[bool, tyro.conf.arg(name="json")]
Engine = Annotated[Literal["local", "ray"], tyro.conf.arg(metavar="local|ray")]
Workers = Annotated[int | None, optional(metavar="NUMBER")]

_SCENES = 'a directory, or "scenes" (comes with the package; knows drawn scenes only).'
Model = Annotated[str, tyro.conf.arg(metavar="MODEL", help=f"an id on the hub, {_SCENES}")]
_HUB_ID = "facebook/maskformer-swin-tiny-ade"
ChosenModel = Annotated[str | None, optional(metavar="MODEL", help=f"an id on the hub such as {_HUB_ID}, {_SCENES}")]
_DEVICES = "cpu, cuda, cuda:1, ...; by default the first GPU if there is one."
Device = Annotated[str | None, optional(metavar="DEVICE", help=_DEVICES)]
_Precision = Literal["float32", "bfloat16", "float16"]
Precision = Annotated[_Precision, tyro.conf.arg(help="precision of the network.")]
ChosenPrecision = Annotated[
    _Precision | None, optional(metavar="float32|bfloat16|float16", help="precision of the network.")
]
_LEAST = "pixels that neighbouring tiles share at least (default an eighth of a tile)."
TileOverlap = Annotated[int | None, optional(metavar="PIXELS", help=_LEAST)]


def check_model(model: str | None, command: str) -> str:
    """The model; a usage error that says what there is to choose from, where none was named."""
    if model is None:
        raise UsageError(
            f"{command} needs --model: an id on the hub such as {_HUB_ID}, a directory with a "
            "checkpoint, or scenes (comes with the package and knows drawn scenes only)"
        )
    return model


def check_counts(**counts: int | None) -> None:
    """A usage error for an option that counts none or fewer."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {count}, expected at least 1")


def check_protocol(protocol: str, zoo: str | None) -> None:
    """A usage error for a published model whose settings nobody would look at."""
    if zoo is not None and protocol != "paper":
        raise UsageError(f"--zoo {zoo} names the settings of --protocol paper: give that too, or leave it out")


def check_workers(engine: str, workers: int | None) -> None:
    """A usage error for workers that cannot be."""
    if workers is not None and (engine != "ray" or workers < 1):
        raise UsageError(f"--workers is {workers}, expected at least 1 and --engine ray")


def check_tiles(tile: int | None, overlap: int | None) -> None:
    """A usage error for tiles that cannot be."""
    if tile is None and overlap is not None:
        raise UsageError("--tile-overlap needs --tile, the side of the tiles in pixels")
    if tile is not None and tile < 32:
        raise UsageError(f"--tile is {tile}, expected at least 32 pixels")
    if tile is not None and overlap is not None and not 0 <= 2 * overlap <= tile:
        raise UsageError(f"--tile-overlap is {overlap}, expected 0 to {tile // 2}, half of --tile")
