"""`maskformer evaluate`: a checkpoint against an annotated data set, with the official numbers."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskformer.cli.predict import Precision, Task, check_tiles
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table, shown

if TYPE_CHECKING:
    from maskformer.data.dataset import SegmentationDataset
    from maskformer.evaluation.evaluate import Evaluation
    from maskformer.evaluation.loop import Options
    from maskformer.inference import Segmenter

Protocol = Literal["transformers", "paper"]
optional = functools.partial(tyro.conf.arg, help_behavior_hint="")


def run(
    model: Annotated[str | None, optional(metavar="MODEL")] = None,
    data: Annotated[str | None, optional(metavar="DIR")] = None,
    task: Annotated[Task | None, optional(metavar="semantic|instance|panoptic")] = None,
    split: Annotated[str | None, optional(metavar="train|val|test")] = None,
    protocol: Protocol = "transformers",
    zoo: Annotated[str | None, optional(metavar="NAME")] = None,
    tta: bool = False,
    tile: Annotated[int | None, optional(metavar="PIXELS")] = None,
    tile_overlap: Annotated[int | None, optional(metavar="PIXELS")] = None,
    threshold: Annotated[float | None, optional(metavar="SHARE")] = None,
    mask_threshold: Annotated[float | None, optional(metavar="SHARE")] = None,
    overlap: Annotated[float | None, optional(metavar="SHARE")] = None,
    fast: bool = False,
    boundary: bool = False,
    by_order: bool = False,
    limit: Annotated[int | None, optional(metavar="IMAGES")] = None,
    out: Annotated[Path | None, optional(metavar="DIR")] = None,
    submission: bool = False,
    resume: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: Annotated[str | None, optional(metavar="DEVICE")] = None,
    dtype: Precision = "float32",
    batch_size: int = 4,
) -> int:
    """Measure a checkpoint on annotated images: panoptic quality, average precision or mean IoU, in percent.

    Under torchrun, processes share the images and print the same numbers as one.

    Args:
        model: an id on the hub, a directory, or "scenes" (comes with the package; knows drawn scenes only).
        data: a directory in any format that `maskformer data check` knows, or "scenes:100" for drawn scenes.
        task: by default the checkpoint's.
        split: by default val, or the only one there is.
        protocol: "paper" resizes, orders and thresholds as the authors did for their published numbers.
        zoo: the published model whose settings "paper" stands for, if the checkpoint is not called like it.
        tta: average over the published sizes and mirrored images (semantic, with --protocol paper).
        tile: segment larger pictures in tiles of that side; `maskformer predict --help` says more.
        tile_overlap: pixels that neighbouring tiles share at least (default an eighth of a tile).
        threshold: lowest score of a segment.
        mask_threshold: lowest mask probability of a segment's pixel.
        overlap: share of its mask that a segment must keep.
        fast: average precision by faster-coco-eval instead of pycocotools; the numbers are the same.
        boundary: average precision by boundary IoU too.
        by_order: the model's classes are the data's in the same order, whatever their names.
        limit: only that many images, the first ones; the result is marked as partial.
        out: directory for metrics.json, per_class.csv, report.html and what --resume needs.
        submission: write the benchmark's submission files into OUT/submission.
        resume: go on with what OUT has of an interrupted evaluation.
        as_json: print one JSON object instead of a table.
        device: cpu, cuda, cuda:1, ...; by default the first GPU if there is one.
        dtype: precision of the network.
        batch_size: images per forward pass, at most; only those of one size go together.
    """
    from maskformer.cli import UsageError

    if model is None or data is None:
        raise UsageError(f"evaluate needs --{'model' if model is None else 'data'}; see `maskformer evaluate --help`")
    _check_usage(protocol, tta, tile, tile_overlap, min(batch_size, limit or 1))
    if out is None and (submission or resume):
        raise UsageError(f"--{'submission' if submission else 'resume'} needs --out DIR")
    post = {"threshold": threshold, "mask_threshold": mask_threshold, "overlap_mask_area_threshold": overlap}
    options = {
        "post_processing": {name: value for name, value in post.items() if value is not None},
        "batch_size": batch_size,
        "tile": tile,
        "tile_overlap": tile_overlap,
        "augment": tta,
        "limit": limit,
        "by_order": by_order,
        "directory": out,
        "resume": resume,
        "submission": submission,
        "boundary": boundary,
        "backend": "faster-coco-eval" if fast else "pycocotools",
    }
    with _processes():
        evaluation, is_first = _evaluate((model, data), (task, split, device, dtype), (protocol, zoo), options)
    if is_first and as_json:
        print(json.dumps({"model": model, "data": data, "protocol": protocol, **evaluation.to_dict()}))
    elif is_first:
        print_evaluation(evaluation)
    return 0


def _check_usage(protocol: Protocol, tta: bool, tile: int | None, tile_overlap: int | None, least: int) -> None:
    from maskformer.cli import UsageError

    check_tiles(tile, tile_overlap)
    if tta and protocol != "paper":
        raise UsageError("--tta needs --protocol paper, which knows the sizes")
    if tta and tile is not None:
        raise UsageError("--tta and --tile exclude each other: choose one")
    if least < 1:
        raise UsageError("--batch-size and --limit must be at least 1")


def _evaluate(
    names: tuple[str, str], what: tuple[Any, ...], protocol: tuple[str, str | None], settings: dict[str, Any]
) -> tuple[Evaluation, bool]:
    """The evaluation, and whether this process is the one that tells it."""
    import torch

    from maskformer.evaluation.evaluate import evaluate
    from maskformer.evaluation.loop import Options
    from maskformer.evaluation.protocol import find_entry, paper_protocol
    from maskformer.inference import Segmenter

    model, data = names
    task, split, device, dtype = what
    is_first = os.environ.get("RANK", "0") == "0"
    if device is None and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    segmenter = Segmenter.from_pretrained(model, task, device, getattr(torch, dtype))
    dataset = open_data(data, split, task or segmenter.task)
    if protocol[0] == "paper":
        settings["protocol"] = paper_protocol(find_entry(model, protocol[1]), segmenter.task)
    options = Options(**settings)
    with progress_bar("evaluating", is_first) as progress:
        try:
            evaluation = evaluate(segmenter, dataset, segmenter.task, options, progress)
        except KeyboardInterrupt:
            hint = " with --resume to go on" if options.directory else ""
            print(f"maskformer: stopped; no result before all images are done: evaluate again{hint}", file=sys.stderr)
            raise
    if is_first and options.directory is not None:
        write_files(evaluation, (segmenter, dataset, options), names)
    return evaluation, is_first


def open_data(data: str, split: str | None, task: Any) -> SegmentationDataset:
    """The data set; without a split, "val" if there is one, else the only one.

    Raises:
        ValueError: it cannot be opened, or has several splits and none is "val".
    """
    from maskformer.data.recognise import open_dataset, recognise

    if data.startswith("hub:") or (data.startswith("scenes") and not Path(data).exists()):
        return open_dataset(data, split or "val", task=task)
    found = {name: splits for name, (_, splits) in recognise(data).items()}
    names = {name for splits in found.values() for name in splits}
    if split is None and "val" not in names and len(names) > 1:
        raise ValueError(f"{data} has the splits {', '.join(sorted(names))}: choose one with --split")
    split = split or ("val" if "val" in names else names.pop())
    # COCO is published in two forms, and its average precision is measured on this one.
    instances = task == "instance" and split in found.get("coco-instances", ())
    return open_dataset(data, split, "coco-instances" if instances else None, task)


def write_files(
    evaluation: Evaluation, source: tuple[Segmenter, SegmentationDataset, Options], names: tuple[str, str]
) -> None:
    """metrics.json, per_class.csv and report.html, each whole or not at all."""
    from maskformer.evaluation.report import gallery, write_report
    from maskformer.results import write_whole

    folder = source[2].directory
    assert folder is not None, "the caller has a directory"
    text = json.dumps({"model": names[0], "data": names[1], **evaluation.to_dict()}, indent=1)
    write_whole(folder / "metrics.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))

    def write_rows(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(evaluation.per_class[0]) if evaluation.per_class else ["id", "name"])
            table.writeheader()
            table.writerows(evaluation.per_class)

    write_whole(folder / "per_class.csv", write_rows)
    write_report(folder / "report.html", evaluation, *names, gallery(source[0], source[1], evaluation, source[2]))
    print(f"written to {folder}: metrics.json, per_class.csv, report.html", file=sys.stderr)


def print_evaluation(evaluation: Evaluation) -> None:
    """The result as tables on stdout, warnings on stderr."""
    images = f"{len(evaluation.images)} images"
    if evaluation.is_partial:
        images = f"PARTIAL: the first {len(evaluation.images)} of {evaluation.num_images} images"
    print(f"{evaluation.task}, {images}, percent")
    if evaluation.per_class:
        columns = [name for name in evaluation.per_class[0] if name not in ("id", "predicted")]
        rows = [[shown(row[name]) for name in columns] for row in evaluation.per_class]
        print_table(["class", *columns[1:]], rows)
    print_table(["metric", "percent"], [[name, shown(value)] for name, value in evaluation.metrics.items()])
    speed = ", ".join(f"{name.replace('_', '-')} {value:.1f}" for name, value in evaluation.images_per_second.items())
    print(f"images/s: {speed}")
    for sentence in evaluation.warnings:
        print(f"maskformer: warning: {sentence}", file=sys.stderr)


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Joins the processes that torchrun has started, if it has."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo")  # integers are added up on the CPU; the network needs no connection
    yield
    distributed.barrier()
    distributed.destroy_process_group()
