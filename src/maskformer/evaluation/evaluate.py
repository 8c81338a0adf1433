"""The evaluation loop: predictions of a data set against its truth, on one process or many, to the same digit.

Processes share the images out, count integers and add them up (`torch.distributed`, wherever it is initialised, so it
works in the middle of a training too). Memory does not grow with the number of images, apart from the run lengths that
average precision needs. C classes.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from maskformer.data.dataset import SegmentationDataset
from maskformer.evaluation.journal import Journal
from maskformer.evaluation.judge import InstanceJudge, Judge, Metrics, PanopticJudge, Row, SemanticJudge
from maskformer.evaluation.loop import STAGES, Loop, Options
from maskformer.evaluation.submission import AnnotationFile, Submission
from maskformer.evaluation.suspicion import suspicions
from maskformer.explanations import explained
from maskformer.inference import Segmenter
from maskformer.results import Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out. All metrics in percent; None where no class or size has support.

    Attributes:
        metrics: the most important one first.
        per_class: a row for each class that the data has: `id`, `name` and its numbers.
        images: `index`, `path` and `score` of each, by index.
        num_images: of the data set; `images` has fewer only if a limit was asked for.
        seconds: per stage, summed over the images of all processes.
        warnings: sentences about suspicious results.
        confusion: pixels by (true, predicted) class; its last class is "nothing" where it has one more than `names`.
    """

    task: Task
    metrics: Metrics
    per_class: list[Row]
    images: list[Row]
    num_images: int
    seconds: dict[str, float]
    warnings: list[str]
    names: list[str]
    confusion: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def is_partial(self) -> bool:
        """Whether images of the data set were left out."""
        return len(self.images) < self.num_images

    @property
    def images_per_second(self) -> dict[str, float]:
        """Of one process, by stage."""
        return {stage: len(self.images) / max(seconds, 1e-9) for stage, seconds in self.seconds.items()}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the confusion matrix."""
        names = ("task", "metrics", "per_class", "num_images", "seconds", "warnings")
        counted = {"partial": self.is_partial, "num_evaluated": len(self.images)}
        speed = {"images_per_second": self.images_per_second}
        return {name: getattr(self, name) for name in names} | counted | speed | {"images": self.images}


@explained
def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    task: Task | None = None,
    options: Options | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model on a data set. On several processes each calls this, and each gets the whole result.

    Source: docs/evaluation.md#protocols.

    Args:
        segmenter: the model; it is left in evaluation mode.
        dataset: opened for the task.
        task: the Segmenter's by default.
        options: see `Options`.
        progress: called with (images done, images to do) of this process.

    Raises:
        ValueError: class lists that do not match, an image or annotation that is wrong, options that exclude each
            other, or records to resume from that belong to another evaluation.
        ImportError: pycocotools, or the other backend of average precision, is not installed.

    Examples:
        >>> from maskformer import Segmenter
        >>> from maskformer.data.recognise import open_dataset
        >>> result = evaluate(Segmenter.from_pretrained("scenes"), open_dataset("scenes:2", "val"))
        >>> result.num_images, 0 <= result.metrics["PQ"] <= 100  # percent
        (2, True)
    """
    options, task = options or Options(), task or segmenter.task
    annotations = AnnotationFile(dataset)
    judge = build_judge(segmenter, annotations, task, options)
    alone = not distributed.is_initialized()
    rank, world = (0, 1) if alone else (distributed.get_rank(), distributed.get_world_size())
    wanted = range(len(dataset))[: options.limit]
    rows, journal = _resumed(segmenter, dataset, task, options, judge, rank)
    done = {row["index"] for row in rows}
    todo = [index for index in wanted if index not in done][rank::world]
    rows = rows if rank == 0 else []
    submission = Submission(options.directory, task, annotations, judge.table) if options.submission else None
    loop = Loop(segmenter, task, options)
    for index, result, sample in loop.results(dataset, todo):
        start = time.perf_counter()
        record = judge.judge(result, sample, index)
        judge.count(record)
        spent = loop.lap() | {"metric": time.perf_counter() - start}
        row = {"index": index, "path": dataset.path(index), "score": record["score"], "seconds": spent}
        rows.append(row)
        if submission is not None:
            record["submission"] = submission.add(result, index)
        if journal is not None:
            journal.append(record | row)
        if progress is not None:
            progress(len(rows), len(todo) + (len(done) if rank == 0 else 0))
    rows, entropy = _summed(judge, rows, loop.entropy)
    if len(rows) != len(wanted):
        raise ValueError(f"{len(rows)} of {len(wanted)} images were counted, which is no result; evaluate again")
    if submission is not None and journal is not None and rank == 0:
        submission.finish(record for record in journal.records() if record["index"] in wanted)
    return _evaluation(judge, task, rows, entropy, len(dataset))


def build_judge(segmenter: Segmenter, annotations: AnnotationFile, task: Task, options: Options) -> Judge:
    """The judge of a task, for the classes of a model.

    Raises:
        ValueError: class lists that do not match, or data that is wrong or was opened for another task.
    """
    dataset = annotations.dataset
    wrong = [finding.message for finding in dataset.findings if finding.level == "error"]
    if wrong or not len(dataset):
        raise ValueError(wrong[0] if wrong else f"{dataset.root} has no image in its split {dataset.split!r}")
    # A panoptic model knows stuff too, which is no matter where instances are counted.
    dispensable = (segmenter.stuff_ids or ()) if task == "instance" else ()
    table = class_table(segmenter.labels, list(dataset.id2label.values()), options.by_order, dispensable)
    if task != dataset.task and (dataset.task != "panoptic" or task not in dataset.tasks):
        raise ValueError(f"{dataset.root} was opened for task {dataset.task!r}, expected {task!r}")
    if task == "semantic":
        return SemanticJudge(dataset.categories, table)
    if task == "panoptic":
        return PanopticJudge(dataset.categories, table)
    return InstanceJudge(annotations, table, options.backend, options.boundary)


def class_table(
    labels: Mapping[int, str], names: Sequence[str], by_order: bool = False, dispensable: Collection[int] = ()
) -> NDArray[np.int64]:
    """int64 [C]: the data's label id of each label id of the model; names are compared without case and synonyms.

    Args:
        labels: of the model.
        names: of the data's classes.
        by_order: take them in their order, whatever their names.
        dispensable: the model's label ids that the data may lack; they get -1.

    Raises:
        ValueError: a class that only one of both has, by name.
    """
    ours, theirs = {label: _plain(labels[label]) for label in sorted(labels)}, [_plain(name) for name in names]
    generic = all(re.fullmatch(r"label \d+", name) for name in ours.values())
    if len(ours) == len(theirs) and (by_order or generic or list(ours.values()) == theirs):
        return np.arange(len(theirs))
    unknown = [name for name in theirs if name not in ours.values()]
    absent = [name for label, name in ours.items() if name not in theirs and label not in dispensable]
    if unknown or absent or len(set(ours.values())) < len(ours) or len(set(theirs)) < len(theirs):
        told = [f"the data's {unknown[0]!r} is not among the model's"] if unknown else []
        told += [f"the model's {absent[0]!r} is not among the data's"] if absent else []
        raise ValueError(
            f"the model's {len(ours)} classes (id2label) are not the {len(theirs)} of the data: "
            f"{', '.join(told) or 'a name occurs twice'}; evaluate on the data it was made for, or with --by-order if "
            "both lists mean the same in the same order"
        )
    return np.array([theirs.index(name) if name in theirs else -1 for name in ours.values()])


def _plain(name: str) -> str:
    return " ".join(re.split(r"[^a-z0-9]+", re.split("[,;]", name.lower())[0])).strip()


def _resumed(
    segmenter: Segmenter, dataset: SegmentationDataset, task: Task, options: Options, judge: Judge, rank: int
) -> tuple[list[Row], Journal | None]:
    """The images that an interrupted evaluation has counted; the first process counts them again."""
    if options.directory is None:
        return [], None
    how = asdict(options)
    for name in ("batch_size", "limit", "directory", "resume", "backend", "boundary"):
        del how[name]  # these change no record
    weights = 0
    for tensor in segmenter.model.state_dict().values():
        weights = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), weights)
    data = {"data": dataset.root, "split": dataset.split, "images": len(dataset), "classes": dataset.id2label}
    model: dict[str, Any] = {"weights": weights, "image_processor": segmenter.image_processor.to_dict()}
    model |= {"labels": dict(segmenter.labels), "stuff": segmenter.stuff_ids}
    journal = Journal(options.directory, {"task": task} | model | data | how, rank)
    rows: dict[int, Row] = {}
    if options.resume:
        for record in journal.records():
            if record["index"] in range(len(dataset))[: options.limit] and record["index"] not in rows:
                rows[record["index"]] = {name: record[name] for name in ("index", "path", "score", "seconds")}
                if rank == 0:
                    judge.count(record)
    elif rank == 0:
        journal.clear()
    if distributed.is_initialized():
        distributed.barrier()  # nobody writes while another still reads
    return list(rows.values()), journal


def _summed(judge: Judge, rows: list[Row], entropy: NDArray[np.float64]) -> tuple[list[Row], NDArray[np.float64]]:
    """What all processes have counted, on each of them."""
    if distributed.is_initialized():
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        for counts in judge.counts.values():
            summed = torch.from_numpy(counts).to(device, copy=True)
            distributed.all_reduce(summed)
            counts[...] = summed.cpu().numpy()
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, (judge.records, rows, entropy))
        judge.records[:] = [record for records, _, _ in everyone for record in records]
        rows = [row for _, some, _ in everyone for row in some]
        entropy = sum((each for _, _, each in everyone), np.zeros(2))
    return sorted(rows, key=lambda row: row["index"]), entropy


def _evaluation(judge: Judge, task: Task, rows: list[Row], entropy: NDArray[np.float64], num_images: int) -> Evaluation:
    metrics, per_class = judge.summary()
    seconds = {stage: float(sum(row["seconds"][stage] for row in rows)) for stage in STAGES}
    images = [{name: row[name] for name in ("index", "path", "score")} for row in rows]
    warnings = suspicions(metrics, per_class, judge.confusion, judge.names, entropy)
    return Evaluation(task, metrics, per_class, images, num_images, seconds, warnings, judge.names, judge.confusion)
