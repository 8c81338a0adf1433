"""`maskformer predict`: segment picture files with a checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from maskformer.results import Segmentation

PICTURE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_OUR_SUFFIXES = (".overlay.png", ".semantic.png", ".panoptic.png", ".instance.png")
Task = Literal["semantic", "instance", "panoptic"]
Protocol = Literal["transformers", "paper", "paper-panoptic"]
Precision = Literal["float32", "bfloat16", "float16"]
_optional = functools.partial(tyro.conf.arg, help_behavior_hint="")
_ADDRESSES = ("http://", "https://")


def run(
    images: Annotated[tuple[str, ...], tyro.conf.Positional, _optional(metavar="IMAGE|DIR...")] = (),
    model: Annotated[str | None, _optional(metavar="MODEL")] = None,
    task: Annotated[Task | None, _optional(metavar="semantic|instance|panoptic")] = None,
    out: Path = Path("predictions"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    threshold: Annotated[float | None, _optional(metavar="SHARE")] = None,
    mask_threshold: Annotated[float | None, _optional(metavar="SHARE")] = None,
    overlap: Annotated[float | None, _optional(metavar="SHARE")] = None,
    protocol: Annotated[Protocol | None, _optional(metavar="transformers|paper|paper-panoptic")] = None,
    device: Annotated[str | None, _optional(metavar="DEVICE")] = None,
    dtype: Annotated[Precision | None, _optional(metavar="float32|bfloat16|float16")] = None,
    batch_size: int = 4,
) -> int:
    """Segment pictures: for each, STEM.overlay.png, STEM.TASK.png and STEM.json are written.

    STEM.TASK.png holds label ids (semantic), ids as in the COCO panoptic format (panoptic), or 16-bit ids with 65535
    where there is nothing (instance).

    Args:
        images: picture files and addresses; of a directory, every picture in it and below.
        model: an id on the hub such as facebook/maskformer-swin-tiny-ade, a directory, or "scenes" (comes with the
            package; knows drawn scenes only).
        task: by default panoptic if the checkpoint knows stuff classes, else semantic.
        out: directory for the results.
        as_json: print one JSON object per picture instead of a table.
        threshold: lowest score of a segment (default 0.5).
        mask_threshold: lowest mask probability of a segment's pixel (default 0.5).
        overlap: share of its mask that a segment must keep (panoptic: default 0.8; instance: default no limit).
        protocol: the order of resizing and sigmoid; "paper" and "paper-panoptic" are the authors'.
        device: cpu, cuda, cuda:1, ...; by default the first GPU if there is one.
        dtype: precision of the network.
        batch_size: pictures per forward pass, at most; only those of one size go together.
    """
    from maskformer.cli import UsageError

    if model is None:
        raise UsageError(
            "predict needs --model: an id on the hub such as facebook/maskformer-swin-tiny-ade, a directory with a "
            "checkpoint, or scenes (comes with the package and knows drawn scenes only)"
        )
    if not images:
        raise UsageError("predict needs pictures: give files or directories")
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}, expected at least 1")
    files, failures = find_pictures(images, out)
    for failure in failures:
        _complain(failure)
    options = {"threshold": threshold, "mask_threshold": mask_threshold, "protocol": protocol}
    options = {**options, "overlap_mask_area_threshold": overlap, "batch_size": batch_size}
    done = _segment_files(files, out, as_json, (model, task, device, dtype), options) if files else 0
    return 0 if not failures and done == len(files) else 1


def find_pictures(sources: tuple[str, ...], out: Path) -> tuple[list[str], list[str]]:
    """The files of all sources, each once, in order, directories sorted; and a sentence for each without any.

    Pictures that an earlier run wrote into `out` are not found in a directory.
    """
    found: dict[str, str] = {}  # by what it leads to
    failures: list[str] = []
    for source in sources:
        path = Path(source)
        if source.startswith(_ADDRESSES):
            found.setdefault(source, source)
        elif not path.exists():
            failures.append(f"{source}: no such file or directory")
        elif not path.is_dir():
            found.setdefault(str(path.resolve()), source)
        else:
            inside = [file for file in sorted(path.rglob("*")) if _is_picture(file, out)]
            if not inside:
                failures.append(f"{source}: no pictures in this directory ({', '.join(sorted(PICTURE_SUFFIXES))})")
            for file in inside:
                found.setdefault(str(file.resolve()), str(file))
    return list(found.values()), failures


def _is_picture(file: Path, out: Path) -> bool:
    if file.suffix.lower() not in PICTURE_SUFFIXES or file.name.startswith(".") or not file.is_file():
        return False
    return not (file.name.endswith(_OUR_SUFFIXES) and out.resolve() in file.resolve().parents)


def unique_stems(files: list[str]) -> list[str]:
    """A name for the results of each file: its stem, with -2, -3, ... where another file has it already.

    Case does not make names different, as on some file systems.
    """
    stems = [PurePosixPath(Path(file).as_posix().split("?")[0]).stem or "picture" for file in files]
    taken = {stem.casefold() for stem in stems}
    used: set[str] = set()
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in used or (number > 1 and name.casefold() in taken):
            number += 1
            name = f"{stem}-{number}"
        used.add(name.casefold())
        names.append(name)
    return names


def _segment_files(
    files: list[str],
    out: Path,
    as_json: bool,
    checkpoint: tuple[str, Any, str | None, str | None],
    options: dict[str, Any],
) -> int:
    """Write and print the results of all files that can be read; returns how many those are."""
    import torch
    from rich.console import Console

    from maskformer.inference import Segmenter

    model, task, device, dtype = checkpoint
    chatty = Console(stderr=True)
    with chatty.status(f"loading {model}") if chatty.is_terminal else contextlib.nullcontext():
        segmenter = Segmenter.from_pretrained(model, task, device, getattr(torch, dtype) if dtype else None)
    named = dict(zip(files, unique_stems(files), strict=True))
    opened: deque[str] = deque()
    done = 0
    with _progress_bar(chatty) as progress:
        bar = progress.add_task("segmenting", total=len(files))
        pictures = _readable(files, opened, segmenter.num_channels, lambda: progress.advance(bar))
        for result in segmenter.stream(pictures, **options):
            file = opened.popleft()
            written = result.save(out, named[file])
            progress.advance(bar)
            _print_result(file, result, written, as_json)
            done += 1
    return done


def _readable(files: list[str], opened: deque[str], num_channels: int, skip: Callable[[], None]) -> Iterator[Tensor]:
    """The pictures that can be read, one at a time; `opened` gets their names, the others are reported."""
    from maskformer.processing.loading import read_image

    for file in files:
        try:
            picture = read_image(file, num_channels, name="picture")
        except (ValueError, OSError, MemoryError) as error:
            _complain(str(error) or f"{file} is too large for the memory")
            skip()
            continue
        opened.append(file)
        yield picture


def _print_result(file: str, result: Segmentation, written: list[Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": file, **result.to_dict(), "written": [str(path) for path in written]}), flush=True)
        return
    height, width = result.image_size
    print(f"{file}  {width} x {height}  {result.task}: {len(result.segments)} segments  -> {written[0]}")
    print_segments(result)


def print_segments(result: Segmentation) -> None:
    """The segments as a table on stdout, the largest first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    is_terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if is_terminal else None, pad_edge=False)
    table.add_column("id", justify="right")
    table.add_column("label", no_wrap=True)
    for column in ("score", "area", "x", "y", "width", "height"):
        table.add_column(column, justify="right")
    pixels = result.image_size[0] * result.image_size[1]
    for segment in sorted(result.segments, key=lambda segment: -segment.area):
        share = f"{100 * segment.area / pixels:.1f} %"
        table.add_row(str(segment.id), segment.label, f"{segment.score:.2f}", share, *map(str, segment.bbox))
    # Wide enough for every row, where nobody looks at the width.
    Console(width=None if is_terminal else 160, highlight=False, markup=False).print(table)


def _progress_bar(console: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Results must reach a redirected stdout untouched; on a terminal they have to go above the bar.
    both = sys.stdout.isatty() and console.is_terminal
    return Progress(*columns, console=console, transient=True, redirect_stdout=both, disable=not console.is_terminal)


def _complain(sentence: str) -> None:
    print(f"maskformer: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
