"""`maskformer predict`: segment picture files with a checkpoint."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor

    from maskformer.evaluation.journal import Journal
    from maskformer.results import Segmentation
    from maskformer.serving.ray_batches import Recipe

PICTURE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_OUR_SUFFIXES = (".overlay.png", ".semantic.png", ".panoptic.png", ".instance.png")
Task = Literal["semantic", "instance", "panoptic"]
Protocol = Literal["transformers", "paper", "paper-panoptic"]
Precision = Literal["float32", "bfloat16", "float16"]
_optional = functools.partial(tyro.conf.arg, help_behavior_hint="")
_ADDRESSES = ("http://", "https://")
Remote = dict[str, tuple[str, str]]  # a picture of another file system -> (the source it is of, its path there)
# Called with what is to be called for each picture that fails; gives picture, result and files of the others.
Finished = Callable[[Callable[[], None]], "Iterator[tuple[str, Segmentation, list[Path]]]"]


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
    tile: Annotated[int | None, _optional(metavar="PIXELS")] = None,
    tile_overlap: Annotated[int | None, _optional(metavar="PIXELS")] = None,
    device: Annotated[str | None, _optional(metavar="DEVICE")] = None,
    dtype: Annotated[Precision | None, _optional(metavar="float32|bfloat16|float16")] = None,
    batch_size: int = 4,
    resume: bool = False,
    engine: Annotated[Literal["local", "ray"], tyro.conf.arg(metavar="local|ray")] = "local",
    workers: Annotated[int | None, _optional(metavar="NUMBER")] = None,
) -> int:
    """Segment pictures: for each, STEM.overlay.png, STEM.TASK.png and STEM.json are written.

    STEM.TASK.png holds label ids (semantic), ids as in the COCO panoptic format (panoptic), or 16-bit ids with 65535
    where there is nothing (instance).

    A picture larger than a tile is segmented in tiles, and segments are joined across the seams. Each tile is resized
    as if it were a picture of its own: choose tiles as large as the pictures that the model was trained on. What is
    larger than a tile, or told by its place in the whole picture, is not recognised. Memory beyond the model: 32 bytes
    per pixel of the picture and what the network needs for one batch of tiles; 6000 x 4000 stays under 1.5 GB.

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
        tile: side of the tiles, such as 1024; by default there are none.
        tile_overlap: pixels that neighbouring tiles share at least (default an eighth of a tile).
        device: cpu, cuda, cuda:1, ...; by default the first GPU if there is one.
        dtype: precision of the network.
        batch_size: pictures per forward pass, at most; only those of one size go together.
        resume: write down in OUT/journal what is finished, and leave out what it has already.
        engine: ray spreads the pictures over the machines of a Ray cluster (that of RAY_ADDRESS or `ray start`, else
            this machine), in any order, and also reads addresses such as s3://bucket/folder.
        workers: processes of --engine ray, with a model each; by default one per GPU, or else per CPU core.
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
    check_workers(engine, workers)
    check_tiles(tile, tile_overlap)
    remote: Remote | None = {} if engine == "ray" else None
    files, failures = find_pictures(images, out, remote)
    for failure in failures:
        _complain(failure)
    options = {"threshold": threshold, "mask_threshold": mask_threshold, "protocol": protocol}
    options = {**options, "overlap_mask_area_threshold": overlap, "batch_size": batch_size}
    named = dict(zip(files, unique_stems(files), strict=True))
    done = _run(named, out, remote, (model, task, device, dtype, tile, tile_overlap, options), workers, resume, as_json)
    return 0 if not failures and done == len(files) else 1


def _run(
    named: dict[str, str],
    out: Path,
    remote: Remote | None,
    words: tuple[Any, ...],
    workers: int | None,
    resume: bool,
    as_json: bool,
) -> int:
    """How many pictures have results, those of earlier runs included."""
    if not named:
        return 0
    from maskformer.serving.ray_batches import Recipe

    recipe = Recipe(*words)
    journal, before = _journal(out, recipe, resume)
    left = {
        file: name for file, name in named.items() if (file, name) not in before or not (out / f"{name}.json").is_file()
    }
    if len(left) < len(named):
        print(f"maskformer: {len(named) - len(left)} of {len(named)} pictures are finished already", file=sys.stderr)
    if not left:
        return len(named)
    finished = _on_this_machine(left, out, recipe) if remote is None else _on_ray(left, out, recipe, remote, workers)
    done, behind = 0, itertools.count(1)
    with progress_bar("segmenting") as progress:
        for file, result, written in finished(lambda: progress(next(behind), len(left))):
            progress(next(behind), len(left))
            if journal is not None:
                journal.append({"file": file, "name": left[file]})
            _print_result(file, result, written, as_json)
            done += 1
    return len(named) - len(left) + done


def _journal(out: Path, recipe: Recipe, resume: bool) -> tuple[Journal | None, set[tuple[str, str]]]:
    """Where to write down what is finished, if that is wanted, and what has been."""
    import dataclasses

    from maskformer.evaluation.journal import Journal

    folder = out / "journal"
    if not resume and not folder.exists():
        return None, set()
    settings = dataclasses.asdict(recipe)
    del settings["device"], settings["options"]["batch_size"]  # they change nothing
    journal = Journal(folder, settings, 0)
    if not resume:
        journal.clear()  # it would tell of other results than those that will be there
        return None, set()
    for part in out.glob(".*.part"):
        part.unlink()  # of a run that was killed
    return journal, {(record["file"], record["name"]) for record in journal.records()}


def check_workers(engine: str, workers: int | None) -> None:
    """A usage error for workers that cannot be."""
    from maskformer.cli import UsageError

    if workers is not None and (engine != "ray" or workers < 1):
        raise UsageError(f"--workers is {workers}, expected at least 1 and --engine ray")


def check_tiles(tile: int | None, overlap: int | None) -> None:
    """A usage error for tiles that cannot be."""
    from maskformer.cli import UsageError

    if tile is None and overlap is not None:
        raise UsageError("--tile-overlap needs --tile, the side of the tiles in pixels")
    if tile is not None and tile < 32:
        raise UsageError(f"--tile is {tile}, expected at least 32 pixels")
    if tile is not None and overlap is not None and not 0 <= 2 * overlap <= tile:
        raise UsageError(f"--tile-overlap is {overlap}, expected 0 to {tile // 2}, half of --tile")


def find_pictures(sources: tuple[str, ...], out: Path, remote: Remote | None = None) -> tuple[list[str], list[str]]:
    """The files of all sources, each once, in order, directories sorted; and a sentence for each without any.

    Pictures that an earlier run wrote into `out` are not found in a directory. With `remote`, which gets where they
    are, also those of other file systems.
    """
    found: dict[str, str] = {}  # by what it leads to
    failures: list[str] = []
    for source in sources:
        path = Path(source)
        if source.startswith(_ADDRESSES):
            found.setdefault(source, source)
        elif "://" in source and remote is not None:
            from maskformer.serving.ray_batches import remote_pictures

            try:
                inside = remote_pictures(source, PICTURE_SUFFIXES)
            except ValueError as error:
                failures.append(str(error))
                continue
            remote.update(inside)
            found.update({name: name for name in inside})
        elif not path.exists():
            hint = ", and addresses such as this need --engine ray" if "://" in source else ""
            failures.append(f"{source}: no such file or directory{hint}")
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


def _on_this_machine(files: Mapping[str, str], out: Path, recipe: Recipe) -> Finished:
    from rich.console import Console

    chatty = Console(stderr=True)
    with chatty.status(f"loading {recipe.model}") if chatty.is_terminal else contextlib.nullcontext():
        predictor, num_channels = recipe.predictor()

    def finished(skip: Callable[[], None]) -> Iterator[tuple[str, Segmentation, list[Path]]]:
        opened: deque[str] = deque()
        for result in predictor.stream(_readable(list(files), opened, num_channels, skip), **recipe.options):
            file = opened.popleft()
            yield file, result, result.save(out, files[file])

    return finished


def _on_ray(files: Mapping[str, str], out: Path, recipe: Recipe, remote: Remote, workers: int | None) -> Finished:
    from maskformer.serving.ray_batches import cluster, segment_on_cluster

    def finished(skip: Callable[[], None]) -> Iterator[tuple[str, Segmentation, list[Path]]]:
        failures: list[str] = []
        with cluster("data") as ray:
            for file, answer in segment_on_cluster(ray, files, remote, recipe, out, workers):
                if isinstance(answer, str):
                    failures.append(answer)
                    skip()
                else:
                    yield file, *answer
        for failure in failures:
            _complain(failure)

    return finished


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
    pixels = result.image_size[0] * result.image_size[1]
    rows = [
        [str(each.id), each.label, f"{each.score:.2f}", f"{100 * each.area / pixels:.1f} %", *map(str, each.bbox)]
        for each in sorted(result.segments, key=lambda segment: -segment.area)
    ]
    print_table(["id", "label", "score", "area", "x", "y", "width", "height"], rows, left=(1,))


def _complain(sentence: str) -> None:
    print(f"maskformer: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
