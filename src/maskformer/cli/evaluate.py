"""`maskformer evaluate`: a checkpoint against an annotated data set, with the official numbers."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from maskformer.cli import UsageError, options, tell
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table, shown

if TYPE_CHECKING:
    from maskformer.data.dataset import SegmentationDataset
    from maskformer.evaluation.evaluate import Evaluation
    from maskformer.evaluation.loop import Options
    from maskformer.evaluation.protocol import Protocol
    from maskformer.inference import Segmenter

_FORMATS = 'a directory in any format that `maskformer data check` knows, or "scenes:100" for drawn scenes.'
Data = Annotated[str, tyro.conf.arg(metavar="DIR", help=_FORMATS)]
Images = Annotated[int | None, options.optional(metavar="IMAGES")]
_PAPER = '"paper" resizes, orders and thresholds as the authors did for their published numbers.'
ProtocolName = Annotated[Literal["transformers", "paper"], tyro.conf.arg(help=_PAPER)]


@dataclass(frozen=True)
class Command:
    """Measure a checkpoint on annotated images: panoptic quality, average precision or mean IoU, in percent.

    Under torchrun, processes share the images and print the same numbers as one.
    """

    model: options.Model
    data: Data
    task: options.Task = None
    """by default the checkpoint's."""
    split: options.Split = None
    """by default val, or the only one there is."""
    protocol: ProtocolName = "transformers"
    zoo: options.Name = None
    """the published model whose settings "paper" stands for, if the checkpoint is not called like it."""
    tta: bool = False
    """average over the published sizes and mirrored images (semantic, with --protocol paper)."""
    tile: options.Pixels = None
    """segment larger pictures in tiles of that side; `maskformer predict --help` says more."""
    tile_overlap: options.TileOverlap = None
    threshold: options.Share = None
    """lowest score of a segment."""
    mask_threshold: options.Share = None
    """lowest mask probability of a segment's pixel."""
    overlap: options.Share = None
    """share of its mask that a segment must keep."""
    fast: bool = False
    """average precision by faster-coco-eval instead of pycocotools; the numbers are the same."""
    boundary: bool = False
    """average precision by boundary IoU too."""
    by_order: bool = False
    """the model's classes are the data's in the same order, whatever their names."""
    limit: Images = None
    """only that many images, the first ones; the result is marked as partial."""
    out: Annotated[Path | None, options.optional(metavar="DIR")] = None
    """directory for metrics.json, per_class.csv, report.html and what --resume needs."""
    submission: bool = False
    """write the benchmark's submission files into OUT/submission."""
    resume: bool = False
    """go on with what OUT has of an interrupted evaluation."""
    as_json: options.Json = False
    """print one JSON object instead of a table."""
    device: options.Device = None
    dtype: options.Precision = "float32"
    batch_size: int = 4
    """images per forward pass, at most; only those of one size go together."""

    def run(self) -> int:
        self._check()
        is_first = os.environ.get("RANK", "0") == "0"
        with _processes():
            evaluation = self._evaluate(is_first)
        if is_first and self.as_json:
            names = {"model": self.model, "data": self.data, "protocol": self.protocol}
            print(json.dumps({**names, **evaluation.to_dict()}))
        elif is_first:
            print_evaluation(evaluation)
        return 0

    def _check(self) -> None:
        options.check_tiles(self.tile, self.tile_overlap)
        if self.tta and self.protocol != "paper":
            raise UsageError("--tta needs --protocol paper, which knows the sizes")
        if self.tta and self.tile is not None:
            raise UsageError("--tta and --tile exclude each other: choose one")
        options.check_counts(limit=self.limit, batch_size=self.batch_size)
        options.check_protocol(self.protocol, self.zoo)
        if self.out is None and (self.submission or self.resume):
            raise UsageError(f"--{'submission' if self.submission else 'resume'} needs --out DIR")

    def _evaluate(self, is_first: bool) -> Evaluation:
        import torch

        from maskformer.evaluation.evaluate import evaluate
        from maskformer.inference import Segmenter

        device = self.device
        if device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        segmenter = Segmenter.from_pretrained(self.model, self.task, device, getattr(torch, self.dtype))
        if segmenter.task != "instance" and (self.fast or self.boundary):
            name = "fast" if self.fast else "boundary"
            raise UsageError(f"--{name} is about average precision, expected --task instance, not {segmenter.task}")
        dataset = open_data(self.data, self.split, segmenter.task)
        how = self._options(segmenter.task)
        with progress_bar("evaluating", is_first) as progress:
            try:
                evaluation = evaluate(segmenter, dataset, segmenter.task, how, progress)
            except KeyboardInterrupt:
                again = "evaluate again with --resume to go on" if self.out else "evaluate again"
                tell(f"stopped; no result before all images are done: {again}")
                raise
        if is_first and self.out is not None:
            self._write(self.out, evaluation, segmenter, dataset, how)
        return evaluation

    def _options(self, task: str) -> Options:
        from maskformer.evaluation.loop import Options

        post_processing = {
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "overlap_mask_area_threshold": self.overlap,
        }
        same = ("batch_size", "tile", "tile_overlap", "limit", "by_order", "boundary", "resume", "submission")
        return Options(
            **{name: getattr(self, name) for name in same},
            protocol=protocol_of(self.protocol, self.model, self.zoo, task),
            post_processing={name: value for name, value in post_processing.items() if value is not None},
            augment=self.tta,
            backend="faster-coco-eval" if self.fast else "pycocotools",
            directory=self.out,
        )

    def _write(
        self, folder: Path, evaluation: Evaluation, segmenter: Segmenter, dataset: SegmentationDataset, how: Options
    ) -> None:
        """metrics.json, per_class.csv and report.html, each whole or not at all."""
        from maskformer.evaluation.report import gallery, write_report
        from maskformer.results import write_whole

        text = json.dumps({"model": self.model, "data": self.data, **evaluation.to_dict()}, indent=1)
        write_whole(folder / "metrics.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))

        def write_rows(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(evaluation.per_class[0]) if evaluation.per_class else ["id", "name"])
                table.writeheader()
                table.writerows(evaluation.per_class)

        write_whole(folder / "per_class.csv", write_rows)
        pictures = gallery(segmenter, dataset, evaluation, how)
        write_report(folder / "report.html", evaluation, self.model, self.data, pictures)
        print(f"written to {folder}: metrics.json, per_class.csv, report.html", file=sys.stderr)


def protocol_of(name: ProtocolName, model: str, zoo: str | None, task: str) -> Protocol:
    """What the name stands for, for a model; ValueError if "paper" stands for nothing there."""
    from maskformer.evaluation.protocol import Protocol, find_entry, paper_protocol

    return paper_protocol(find_entry(model, zoo), task) if name == "paper" else Protocol()


def open_data(data: str, split: str | None, task: Any) -> SegmentationDataset:
    """The data set; without a split, "val" if there is one, else the only one.

    Raises:
        ValueError: it cannot be opened, or has several splits and none is "val".
    """
    from maskformer.data.folders import split_of
    from maskformer.data.recognise import open_dataset, recognise

    if data.startswith("hub:") or (data.startswith("scenes") and not Path(data).exists()):
        return open_dataset(data, split or "val", task=task)
    found = {name: splits for name, (_, splits) in recognise(data).items()}
    names = {name for splits in found.values() for name in splits}
    if split is None and "val" not in names and len(names) > 1:
        raise ValueError(f"{data} has the splits {', '.join(sorted(names))}: choose one with --split")
    split = split or ("val" if "val" in names else names.pop())
    # COCO is published in two forms, and its average precision is measured on this one.
    instances = task == "instance" and any(split in (name, split_of(name)) for name in found.get("coco-instances", ()))
    return open_dataset(data, split, "coco-instances" if instances else None, task)


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
        tell(f"warning: {sentence}")


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
