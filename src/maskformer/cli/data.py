"""`maskformer data check`: what a data set holds and what is wrong with it; `data example`: one to learn on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from maskformer.data.check import Report
    from maskformer.data.dataset import SegmentationDataset
    from maskformer.data.sample import Sample

Task = Literal["semantic", "instance", "panoptic"]
_LISTED = 5  # findings of a kind that are printed; --json has all
_TILE = (240, 320)  # height, width of a picture on the contact sheet
_COLUMNS, _TILES, _CAPTION = 3, 12, 18


def run(
    action: Annotated[Literal["check", "example"], tyro.conf.Positional, tyro.conf.arg(metavar="check|example")],
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    split: Annotated[str | None, tyro.conf.arg(metavar="train|val|test", help_behavior_hint="")] = None,
    layout: Annotated[str | None, tyro.conf.arg(name="format", metavar="FORMAT", help_behavior_hint="")] = None,
    task: Annotated[Task | None, tyro.conf.arg(metavar="semantic|instance|panoptic", help_behavior_hint="")] = None,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
    sheet: Path = Path("data-check.png"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Check a data set: what each value of the annotations becomes, and everything that would make training go wrong.

    Exit code 1 where training would refuse the data, which it does in the same words. `data example DIR` makes a data
    set instead: drawn scenes with exact annotations, in the format of COCO panoptic.

    Args:
        action: check, or example.
        source: a directory with images and annotations; "hub:user/name"; or "scenes".
        split: by default every split there is.
        layout: the format, where a directory has several: coco-instances, coco-panoptic, label-maps, ade20k,
            ade20k-full, cityscapes, mapillary, coco-stuff or hub.
        task: what to train; by default what the annotation is made for.
        limit: look at so many images of each split only; of an example, how many to draw (20).
        sheet: where to draw a contact sheet of decoded targets.
        as_json: print one JSON object per split.
    """
    if action == "example":
        from maskformer.data.example import write_example

        print(write_example(source, 20 if limit is None else limit))
        return 0
    from maskformer.data.check import check_dataset

    good = True
    datasets = _datasets(source, split, layout, task)
    for dataset in datasets:
        report = _with_progress(check_dataset, dataset, limit)
        good = good and report.ok
        if as_json:
            print(json.dumps(report.to_dict()))
        else:
            _print_report(report)
    if draw_contact_sheet(datasets, sheet):
        print(f"contact sheet -> {sheet}", file=sys.stderr)
    return 0 if good else 1


def _datasets(source: str, split: str | None, layout: str | None, task: Task | None) -> list[SegmentationDataset]:
    from maskformer.data.recognise import open_dataset, recognise

    splits = [split] if split else ["train"]
    if split is None and Path(source).is_dir():
        found = [entry for name, (_, entry) in recognise(source).items() if layout in (None, name)]
        splits = list(found[0]) if found else splits
    return [open_dataset(source, name, layout, task) for name in splits]


def _with_progress(check: Any, dataset: SegmentationDataset, limit: int | None) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"reading {dataset.split}", total=min(len(dataset), limit or len(dataset)))
        return check(dataset, limit, progress=lambda done: progress.update(bar, completed=done))


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())
    shown = "" if report.num_checked == report.num_images else f" ({report.num_checked} looked at)"
    console.print(
        f"{escape(report.source)}: {report.layout}, {report.split}, {report.task}\n"
        f"{report.num_images} images{shown}, {report.num_classes} classes, {report.num_targets} targets, "
        f"at most {report.most_targets} in an image"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("value", "becomes", "pixels", "share", "images", "segments"):
        table.add_column(column, justify="left" if column == "becomes" else "right", no_wrap=True)
    total = sum(row.pixels for row in report.values) or 1
    for row in report.values:
        meaning = f"{row.label_id} {row.label}" if row.becomes == "class" else f"({row.becomes})"
        numbers = (f"{row.pixels}", f"{100 * row.pixels / total:.2f} %", f"{row.images}", f"{row.segments or '-'}")
        table.add_row("-" if row.value is None else f"{row.value}", escape(meaning), *numbers)
    console.print(table)
    _print_findings(console, report)


def _print_findings(console: Any, report: Report) -> None:
    from rich.markup import escape

    kinds = dict.fromkeys((finding.level, finding.kind) for finding in report.findings)
    for level, kind in sorted(kinds):  # errors first
        same = [finding for finding in report.findings if (finding.level, finding.kind) == (level, kind)]
        style = "red" if level == "error" else "yellow"
        for finding in same[:_LISTED]:
            console.print(f"[{style}]{level}[/] {kind}: {escape(finding.message)}")
        if len(same) > _LISTED:
            console.print(f"[{style}]{level}[/] {kind}: and {len(same) - _LISTED} more (--json lists all)")
    verdict = "training would refuse this" if report.errors else "good to train on"
    console.print(f"{len(report.errors)} errors, {len(report.findings) - len(report.errors)} warnings: {verdict}\n")


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


def _sheet(samples: list[Sample], dataset: SegmentationDataset) -> Any:
    import numpy as np
    from PIL import ImageDraw

    from maskformer.data.transforms import resize
    from maskformer.visualization import overlay

    columns, rows = min(_COLUMNS, len(samples)), -(-len(samples) // _COLUMNS)
    size = (rows * (_TILE[0] + _CAPTION), columns * _TILE[1])
    image, ids = np.full((*size, 3), 255, np.uint8), np.zeros(size, np.int32)
    labels = [-1]  # by segment id, over all samples
    ignored = len(dataset.categories)
    for place, sample in enumerate(samples):
        scale = min(_TILE[0] / sample.size[0], _TILE[1] / sample.size[1])
        small = resize(sample, (max(1, int(sample.size[0] * scale)), max(1, int(sample.size[1] * scale)))).flattened()
        top, left = place // _COLUMNS * (_TILE[0] + _CAPTION) + _CAPTION, place % _COLUMNS * _TILE[1]
        window = (slice(top, top + small.size[0]), slice(left, left + small.size[1]))
        image[window] = small.image
        ids[window] = np.where(small.planes[0] > 0, small.planes[0].astype(np.int32) + len(labels) - 1, 0)
        labels += [region.label_id if region.is_target else ignored for region in small.regions]
    colors = {label: category.color for label, category in enumerate(dataset.categories) if category.color}
    colors[ignored], names = (0, 0, 0), {**dataset.id2label, ignored: "ignored or crowd"}
    segments = [{"id": number, "label_id": label} for number, label in enumerate(labels) if number]
    picture = overlay(image, ids, segments, names, alpha=0.55, legend=False, colors=colors)
    draw = ImageDraw.Draw(picture)
    for place, sample in enumerate(samples):
        corner = (place % _COLUMNS * _TILE[1] + 3, place // _COLUMNS * (_TILE[0] + _CAPTION) + 3)
        draw.text(corner, Path(sample.path).name[-48:], fill=(34, 36, 42))
    # A second time for its legend alone: one line per class instead of one per segment.
    present = [{"id": label, "label_id": label} for label in sorted(set(labels[1:]))]
    return overlay(picture, np.array(labels)[ids], present, names, alpha=0.0, colors=colors)
