"""What every annotation format is read as: a data set of `Sample`s that says what is wrong with itself.

Nothing but paths and, for the JSON formats, packed annotations stays in memory. A sample is read when it is asked for;
`examine` reports what is wrong with it, `dataset[i]` raises the first of that as a ValueError: the sentences of
`maskformer data check` and of training are the same. C classes, H W image.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import Category, ClassList
from maskformer.data.sample import UNKNOWN, Image, Sample, Task


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that a person should know.

    Attributes:
        kind: "unreadable", "missing", "size mismatch", "unknown value", "unused class", "empty image", "empty object",
            "no images" or "no targets".
        level: "error" where training would go wrong, else "warning".
        path: the file, or the directory.
        message: one sentence that names file and value.
        value: the value or category id, where one is at fault.
    """

    kind: str
    level: Literal["error", "warning"]
    path: str
    message: str
    value: int | None = None


class DataError(ValueError):
    """An annotation that contradicts itself; `finding` says how."""

    def __init__(self, kind: str, path: str, message: str, value: int | None = None) -> None:
        super().__init__(message)
        self.finding = Finding(kind, "error", path, message, value)


class Records(Sequence[Any]):
    """A list of plain records as one array of bytes.

    Reading an element of an ordinary list writes its reference count, which makes forked loader processes copy the
    whole list bit by bit; and a parsed annotation file takes several times its size.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        packed = [pickle.dumps(record, protocol=5) for record in records]
        self._bounds = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._bytes: NDArray[np.uint8] = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        return pickle.loads(self._bytes[self._bounds[place] : self._bounds[place + 1]].data)


class SegmentationDataset(ABC):
    """Samples by index.

    Source: docs/data.md#label-values.

    Args:
        root: the directory (or name) that was opened.
        split: "train", "val" or "test".
        classes: what values mean.
        records: per image its file, its annotation's file, and what the format needs besides.
        findings: what is already known to be wrong.
        task: one of `tasks`; the first by default.

    Attributes:
        layout: the name of the format; `open_dataset` sets it.
        tasks: what the annotation allows to train, the usual one first.

    Raises:
        IndexError: there is no such sample.
        DataError: a ValueError; the sample's files cannot be read, or hold what the class list does not know.
        ValueError: the annotation does not allow the task.

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> sample = open_dataset("scenes:10", "train")[0]
        >>> sample.image.shape, len(sample.masks()) == len(sample.regions)
        ((192, 256, 3), True)
    """

    layout: str = ""
    tasks: tuple[Task, ...] = ("semantic",)
    value_noun: ClassVar[str] = "value"
    remedy: ClassVar[str] = "add it to the class list, there as `VALUE: ignored` if it is not to be learnt"

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: ClassList,
        records: Iterable[tuple[Any, ...]],
        findings: Iterable[Finding] = (),
        task: Task | None = None,
    ) -> None:
        if task is not None and task not in self.tasks:
            raise ValueError(
                f"the annotation of {root} allows {' and '.join(self.tasks)} segmentation, got task={task!r}: leave "
                "the task out, or annotate each object (in COCO JSON, or in instance maps)"
            )
        self.root, self.split, self.classes = str(root), split, classes
        self.records = Records(records)
        self.findings = tuple(findings)
        self.task: Task = task or self.tasks[0]

    @property
    def categories(self) -> tuple[Category, ...]:
        """The C classes, by label id."""
        return self.classes.categories

    @property
    def id2label(self) -> dict[int, str]:
        return {label: category.name for label, category in enumerate(self.categories)}

    @property
    def stuff_class_ids(self) -> list[int]:
        """Label ids of the classes without instances; all of them where the annotation is semantic only."""
        return [label for label, category in enumerate(self.categories) if not category.isthing]

    def __len__(self) -> int:
        return len(self.records)

    def path(self, index: int) -> str:
        """The image's file."""
        return str(self.records[index][0])

    def target_path(self, index: int) -> str:
        """The annotation's file."""
        return str(self.records[index][1])

    def __getitem__(self, index: int) -> Sample:
        """Reads image and annotation.

        Raises:
            ValueError: the sentence of the first error of `examine`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        sample, findings = self.examine(index)
        for finding in findings:
            if finding.level == "error":
                raise ValueError(finding.message)
        assert sample is not None, "what cannot be read is an error"
        return sample

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The sample as it is stored, errors and all; formats implement it."""

    def examine(self, index: int) -> tuple[Sample | None, list[Finding]]:
        """The sample, if it can be read, and what is wrong with it."""
        path = self.target_path(index)
        try:
            sample = self.read(index)
            size, found = sample.size, sample.planes.shape[1:]
            if found != size:
                raise self.size_mismatch(index, found, size)
        except DataError as error:
            return None, [error.finding]
        except (ValueError, OSError) as error:
            return None, [Finding("unreadable", "error", self.path(index), str(error))]
        sample, findings = sample.for_task(self.task), []
        if any(region.label_id == UNKNOWN for region in sample.regions):
            findings = self._unknown_values(sample, path)
        elif not any(region.is_target for region in sample.regions):
            message = f"{path} has nothing to learn in it: every pixel is background or ignored"
            findings = [Finding("empty image", "warning", path, message)]
        return sample, findings

    def size_mismatch(self, index: int, found: tuple[int, ...], size: tuple[int, ...]) -> DataError:
        """What to raise where the annotation's (H, W) is not the image's."""
        path = self.target_path(index)
        message = f"{path} is {found[0]} x {found[1]} (height x width) but its image {self.path(index)} is "
        remedy = f"{size[0]} x {size[1]}: they must be the same size, after the image's EXIF rotation"
        return DataError("size mismatch", path, message + remedy)

    def _unknown_values(self, sample: Sample, path: str) -> list[Finding]:
        pixels = Counter[int]()
        for region, area in zip(sample.regions, sample.areas().tolist(), strict=True):
            if region.label_id == UNKNOWN:
                pixels[region.value] += area
        holds = f"{path} holds {self.value_noun}"
        fault = f"which is not among the {len(self.categories)} classes of {self.classes.source}: {self.remedy}"
        return [
            Finding("unknown value", "error", path, f"{holds} {value} ({area} pixels), {fault}", value)
            for value, area in pixels.items()
        ]


def read_picture(path: str | Path | Any) -> Image:
    """uint8 [H, W, 3] of a picture (a file or a Pillow image), upright.

    Raises:
        ValueError: it is missing or damaged.
    """
    from maskformer.processing.loading import read_image

    pixels = read_image(path, name="the image").numpy()
    if pixels.dtype != np.uint8:
        raise ValueError(f"the image ({path}) holds {pixels.dtype} values, expected a picture of 8 or 16 bits")
    return np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0))  # [H, W, 3]
