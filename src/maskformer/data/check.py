"""What is in a data set and what is wrong with it: `maskformer data check`, and the refusal of training.

Every image and annotation is read once. C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from maskformer.data.classes import USUALLY_IGNORED
from maskformer.data.dataset import Finding, SegmentationDataset
from maskformer.data.sample import IGNORED

_THREADS, _READ_AHEAD = 4, 64
_Key: TypeAlias = "tuple[int | None, int | None]"  # value, label id; both None: background


@dataclass(slots=True)
class ValueCount:
    """What one value of the annotations (None: pixels without any) becomes, and how often it occurs.

    `becomes` is "class", "ignored", "background" or "unknown"; `label` and `label_id` are the class's.
    """

    value: int | None
    becomes: str
    label: str = ""
    label_id: int | None = None
    pixels: int = 0
    images: int = 0
    segments: int = 0


@dataclass(slots=True)
class Report:
    """The result of a check; `ok` says whether training may start."""

    source: str
    layout: str
    split: str
    task: str
    num_images: int
    num_classes: int
    num_checked: int
    num_targets: int = 0
    most_targets: int = 0  # in one image: the model needs at least as many queries
    values: list[ValueCount] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "ok": self.ok}


def check_dataset(
    dataset: SegmentationDataset, limit: int | None = None, progress: Callable[[int], object] = lambda done: None
) -> Report:
    """Read a data set and tell what is in it.

    Source: docs/data.md#what-data-check-finds.

    Args:
        limit: look at so many images only, evenly spread; which classes are unused is not told then.
        progress: called with the number of images done.

    Raises:
        Nothing: what cannot be read is a finding of the report.

    Examples:
        >>> from maskformer.data.recognise import open_dataset
        >>> report = check_dataset(open_dataset("scenes:2", "train"))
        >>> report.ok, report.num_images, report.num_classes
        (True, 2, 14)
    """
    places = np.arange(len(dataset))
    if limit is not None and limit < len(places):
        places = places[np.linspace(0, len(places) - 1, limit).round().astype(int)]
    sizes = len(dataset), len(dataset.categories), len(places)
    report = Report(dataset.root, dataset.layout, dataset.split, dataset.task, *sizes)
    report.findings.extend(dataset.findings)
    keys = [(category.original_id, label) for label, category in enumerate(dataset.categories)]
    rows: dict[_Key, ValueCount] = {key: _row(dataset, *key) for key in keys}
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(places), _READ_AHEAD):
            few = places[start : start + _READ_AHEAD].tolist()
            for done, (findings, counts, num_targets) in enumerate(pool.map(lambda i: _look(dataset, i), few), 1):
                report.findings.extend(findings)
                report.num_targets += num_targets
                report.most_targets = max(report.most_targets, num_targets)
                for key, (pixels, segments) in counts.items():
                    row = rows.setdefault(key, _row(dataset, *key))
                    row.pixels, row.images, row.segments = row.pixels + pixels, row.images + 1, row.segments + segments
                progress(start + done)
    report.values = sorted(rows.values(), key=lambda row: (row.value is not None, row.value or 0))
    report.findings.extend(_findings_over_all(report))
    return report


def refuse_wrong_data(dataset: SegmentationDataset, limit: int | None = None) -> Report:
    """The report of a data set that can be trained on.

    Raises:
        ValueError: the first error, in the words of `maskformer data check`, and how many more there are.
    """
    report = check_dataset(dataset, limit)
    if report.errors:
        first, *more = report.errors
        others = f" (and {len(more)} more: `maskformer data check {report.source}` lists them)" if more else ""
        raise ValueError(first.message + others)
    return report


def _look(dataset: SegmentationDataset, index: int) -> tuple[list[Finding], dict[_Key, tuple[int, int]], int]:
    """What is wrong with one image, its pixels and segments of each value, and its number of targets."""
    sample, findings = dataset.examine(index)
    counts: dict[_Key, tuple[int, int]] = {}
    if sample is None:
        return findings, counts, 0
    areas = sample.areas().tolist()
    for region, area in zip(sample.regions, areas, strict=True):
        pixels, segments = counts.get((region.value, region.label_id), (0, 0))
        counts[region.value, region.label_id] = (pixels + area, segments + 1)
    background = int(np.count_nonzero(~sample.planes.any(axis=0)))
    if background:
        counts[None, None] = (background, 0)
    filled = [area > 0 for region, area in zip(sample.regions, areas, strict=True) if region.is_target]
    if not all(filled):
        message = f"{dataset.target_path(index)} has {filled.count(False)} objects without a pixel in {sample.path}"
        findings.append(Finding("empty object", "warning", sample.path, f"{message}: they are left out"))
    return findings, counts, sum(filled)


def _row(dataset: SegmentationDataset, value: int | None, label_id: int | None) -> ValueCount:
    if label_id is None:
        return ValueCount(None, "background")
    if label_id < 0:
        return ValueCount(value, "ignored" if label_id == IGNORED else "unknown")
    return ValueCount(value, "class", dataset.categories[label_id].name, label_id)


def _findings_over_all(report: Report) -> list[Finding]:
    """What only all images together show."""
    source = report.source
    if not report.num_images:
        message = f"{source} has no images in its split {report.split!r} ({report.layout}): nothing can be learnt"
        return [Finding("no images", "error", source, message)]
    if not report.num_targets and not report.errors:
        has_empty = any(finding.kind == "empty object" for finding in report.findings)
        remedy = "its objects have boxes, expected masks" if has_empty else "check the class list"
        message = f"{source} has nothing to learn in any of its {report.num_checked} images: {remedy}"
        return [Finding("no targets", "error", source, message)]
    findings: list[Finding] = []
    left_out = [row.value for row in report.values if row.becomes == "ignored" and row.value in USUALLY_IGNORED]
    # A drawing tool's 255 is a class more often than the convention's.
    hint = f"; value {left_out[0]} is ignored: if it is a class, list it as `{left_out[0]}: NAME`" if left_out else ""
    for row in report.values if report.num_checked == report.num_images else ():
        if row.becomes == "class" and not row.pixels:
            place = f"{source} ({report.split})"
            message = f"class {row.label} (value {row.value}) occurs in no image of {place}: it is not learnt{hint}"
            findings.append(Finding("unused class", "warning", source, message, row.value))
    return findings
