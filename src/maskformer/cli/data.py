"""`maskformer data check`: what a data set holds and what is wrong with it; `data example`: one to learn on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskformer.cli import UsageError, options
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table

if TYPE_CHECKING:
    from PIL import Image

    from maskformer.data.check import Report
    from maskformer.data.dataset import SegmentationDataset
    from maskformer.data.sample import Sample

_LISTED = 5  # findings of a kind that are printed; --json has all
_TILE = (240, 320)  # height, width of a picture on the contact sheet
_COLUMNS, _TILES, _CAPTION = 3, 12, 18


@dataclass(frozen=True)
class Command:
    """Check a data set: what each value of the annotations becomes, and everything that would make training go wrong.

    Exit code 1 where training would refuse the data, which it does in the same words. `data example DIR` makes a data
    set instead: drawn scenes with exact annotations, in the format of COCO panoptic.
    """

    action: Annotated[Literal["check", "example"], tyro.conf.Positional, tyro.conf.arg(metavar="check|example")]
    """check, or example."""
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """a directory with images and annotations; "hub:user/name"; or "scenes"."""
    split: options.Split = None
    """by default every split there is."""
    layout: Annotated[str | None, options.optional(name="format", metavar="FORMAT")] = None
    """coco-panoptic, coco-instances, label-maps, ade20k, ade20k-full, cityscapes, mapillary, coco-stuff or hub."""
    task: options.Task = None
    """what to train; by default what the annotation is made for."""
    limit: Annotated[int | None, options.optional(metavar="N")] = None
    """look at so many images of each split only; of an example, how many to draw (20)."""
    sheet: Path = Path("data-check.png")
    """where to draw a contact sheet of decoded targets."""
    as_json: options.Json = False
    """print one JSON object per split; of an example, one with its path."""

    def run(self) -> int:
        options.check_counts(limit=self.limit)
        if self.action == "example":
            return self._example()
        datasets = self._datasets()
        reports = [self._checked(dataset) for dataset in datasets]
        if draw_contact_sheet(datasets, self.sheet):
            print(f"contact sheet -> {self.sheet}", file=sys.stderr)
        return 0 if all(report.ok for report in reports) else 1

    def _example(self) -> int:
        from maskformer.data.example import write_example

        if self.split or self.layout or self.task:
            raise UsageError(
                "data example draws every split, in one format and for every task: leave those options out"
            )
        root = write_example(self.source, self.limit or 20)
        print(json.dumps({"path": str(root)}) if self.as_json else root)
        return 0

    def _datasets(self) -> list[SegmentationDataset]:
        from maskformer.data.recognise import open_dataset, recognise

        splits = [self.split] if self.split else ["train"]
        if self.layout and self.source.startswith(("scenes", "hub:")) and not Path(self.source).exists():
            raise UsageError(f"--format {self.layout} is about directories, and {self.source} is none: leave it out")
        if self.split is None and Path(self.source).is_dir():
            found = [entry for name, (_, entry) in recognise(self.source).items() if self.layout in (None, name)]
            splits = list(found[0]) if found else splits
        return [open_dataset(self.source, name, self.layout, self.task) for name in splits]

    def _checked(self, dataset: SegmentationDataset) -> Report:
        from maskformer.data.check import check_dataset

        total = min(len(dataset), self.limit or len(dataset))
        with progress_bar(f"reading {dataset.split}") as progress:
            report = check_dataset(dataset, self.limit, progress=lambda done: progress(done, total))
        if self.as_json:
            print(json.dumps(report.to_dict()))
        else:
            _print_report(report)
        return report


def _print_report(report: Report) -> None:
    from rich.console import Console

    shown = "" if report.num_checked == report.num_images else f" ({report.num_checked} looked at)"
    print(
        f"{report.source}: {report.layout}, {report.split}, {report.task}\n"
        f"{report.num_images} images{shown}, {report.num_classes} classes, {report.num_targets} targets, "
        f"at most {report.most_targets} in an image"
    )
    total = sum(row.pixels for row in report.values) or 1
    rows: list[list[str]] = []
    for row in report.values:
        meaning = f"{row.label_id} {row.label}" if row.becomes == "class" else f"({row.becomes})"
        numbers = (f"{row.pixels}", f"{100 * row.pixels / total:.2f} %", f"{row.images}", f"{row.segments or '-'}")
        rows.append(["-" if row.value is None else f"{row.value}", meaning, *numbers])
    print_table(["value", "becomes", "pixels", "share", "images", "segments"], rows, left=(1,))
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    kinds = dict.fromkeys((finding.level, finding.kind) for finding in report.findings)
    for level, kind in sorted(kinds):  # errors first
        messages = [finding.message for finding in report.findings if (finding.level, finding.kind) == (level, kind)]
        more = [f"and {len(messages) - _LISTED} more (--json lists all)"] if len(messages) > _LISTED else []
        for message in messages[:_LISTED] + more:
            console.print(f"{level} {kind}: {message}", style="red" if level == "error" else "yellow")
    verdict = "training would refuse this" if report.errors else "good to train on"
    print(f"{len(report.errors)} errors, {len(report.findings) - len(report.errors)} warnings: {verdict}\n")


def draw_contact_sheet(datasets: list[SegmentationDataset], path: Path) -> int:
    """Draw the first twelve readable images, evenly spread, with targets, crowds and ignored areas over them.

    Returns:
        How many were drawn; nothing is written for none.
    """
    from maskformer.results import write_whole

    samples: list[Sample] = []
    for dataset in datasets:
        step = max(1, len(dataset) * len(datasets) // _TILES)
        for index in range(0, len(dataset), step):
            sample, _ = dataset.examine(index)
            if sample is not None and len(samples) < _TILES:
                samples.append(sample)
    if samples:
        picture = _sheet(samples, datasets[0])
        write_whole(path, lambda part: picture.save(part, "PNG"))
    return len(samples)


def _sheet(samples: list[Sample], dataset: SegmentationDataset) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageDraw

    from maskformer.data.transforms import resize
    from maskformer.visualization import overlay

    (height, width), ignored = _TILE, len(dataset.categories)
    rows, columns = -(-len(samples) // _COLUMNS), min(_COLUMNS, len(samples))
    sheet = Image.new("RGB", (columns * width, rows * (height + _CAPTION)), "white")
    classes = np.full((sheet.height, sheet.width), -1)
    draw = ImageDraw.Draw(sheet)
    names = {**dataset.id2label, ignored: "ignored or crowd"}
    colors = {label: category.color for label, category in enumerate(dataset.categories) if category.color}
    colors[ignored] = (0, 0, 0)
    for place, sample in enumerate(samples):
        left, top = place % _COLUMNS * width, place // _COLUMNS * (height + _CAPTION)
        draw.text((left + 3, top + 3), Path(sample.path).name[-48:], fill=(34, 36, 42))
        scale = min(height / sample.size[0], width / sample.size[1])
        small = resize(sample, (max(1, int(sample.size[0] * scale)), max(1, int(sample.size[1] * scale)))).flattened()
        labels = [region.label_id if region.is_target else ignored for region in small.regions]
        segments = [{"id": number, "label_id": label} for number, label in enumerate(labels, 1)]
        drawn = overlay(small.image, small.planes[0], segments, names, alpha=0.55, legend=False, colors=colors)
        sheet.paste(drawn, (left, top + _CAPTION))
        window = classes[top + _CAPTION :, left:][: small.size[0], : small.size[1]]
        window[:] = np.array([-1, *labels])[small.planes[0]]
    # Once more for the legend alone: one line per class instead of one per segment.
    present = [{"id": label, "label_id": label} for label in np.unique(classes[classes >= 0]).tolist()]
    return overlay(sheet, classes, present, names, alpha=0.0, colors=colors)
