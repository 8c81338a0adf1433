"""`maskformer compare`: two checkpoints, or one in our class and in transformers', on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskformer.cli.evaluate import Protocol, open_data, optional
from maskformer.cli.predict import Task
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table, shown


def run(
    a: Annotated[str, tyro.conf.Positional, optional(metavar="A")],
    b: Annotated[str, tyro.conf.Positional, optional(metavar="B")],
    data: Annotated[str | None, optional(metavar="DIR")] = None,
    task: Annotated[Task | None, optional(metavar="semantic|instance|panoptic")] = None,
    split: Annotated[str | None, optional(metavar="train|val|test")] = None,
    protocol: Protocol = "transformers",
    zoo: Annotated[str | None, optional(metavar="NAME")] = None,
    by_order: bool = False,
    limit: Annotated[int | None, optional(metavar="IMAGES")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: Annotated[str | None, optional(metavar="DEVICE")] = None,
) -> int:
    """Compare two models image by image: difference of logits, agreement of maps, metric by metric.

    Args:
        a: an id on the hub, a directory, or "scenes"; with "transformers:" before it, in transformers' class.
        b: likewise.
        data: a directory in any format that `maskformer data check` knows, or "scenes:100" for drawn scenes.
        task: by default the one of A.
        split: by default val, or the only one there is.
        protocol: "paper" resizes, orders and thresholds as the authors did for their published numbers.
        zoo: the published model whose settings "paper" stands for, if A is not called like it.
        by_order: the models' classes are the data's in the same order, whatever their names.
        limit: only that many images, the first ones.
        as_json: print one JSON object instead of tables.
        device: cpu, cuda, cuda:1, ...; by default the first GPU if there is one.
    """
    from maskformer.cli import UsageError

    if data is None:
        raise UsageError("compare needs --data DIR")
    from maskformer.evaluation.compare import PEER, compare, load_for_comparison
    from maskformer.evaluation.loop import Options
    from maskformer.evaluation.protocol import find_entry, paper_protocol

    first = load_for_comparison(a, task, device)
    second = load_for_comparison(b, first.task, device)
    settings: dict[str, Any] = {"by_order": by_order, "limit": limit}
    if protocol == "paper":
        settings["protocol"] = paper_protocol(find_entry(a.removeprefix(PEER), zoo), first.task)
    dataset = open_data(data, split, first.task)
    with progress_bar("comparing") as progress:
        found = compare(first, second, dataset, first.task, Options(**settings), progress)
    if as_json:
        print(json.dumps({"a": a, "b": b, "data": data, **found.to_dict()}))
        return 0
    names = [Path(a).name, Path(b).name] if Path(a).name != Path(b).name else [a, b]
    print(f"{found.task}, {found.num_images} images, percent")
    rows = [
        [name, shown(x), shown(y), "-" if x is None or y is None else f"{y - x:+.3f}"]
        for name, (x, y) in found.metrics.items()
    ]
    print_table(["metric", *names, "B - A"], rows)
    print(f"same class: {found.pixel_agreement:.4f} % of the pixels; {found.identical_maps} maps are identical")
    if found.map_agreement is not None:
        print(f"panoptic quality of B with A as truth: {found.map_agreement:.4f} %")
    for name, apart in found.logits.items():
        print(f"{name}: largest difference {apart.largest:.3g}, mean {apart.mean:.3g}, relative {apart.relative:.3g}")
    if not found.logits:
        print("logits: of different shapes, not compared")
    return 0
