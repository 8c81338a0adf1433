"""`maskformer zoo`: the 30 published models."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import tyro

from maskformer.checkpoints.zoo import ZooEntry, list_zoo

_COLUMNS = ("name", "backbone", "classes", "parameters", "published", "weights on the hub")
# Wide enough for every row, where nobody looks at the width.
_PLAIN_WIDTH = 160


def run(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """List the models the authors published, with their results (percent, one scale) and where to get weights.

    Models without weights on the hub: download the authors' file and run `maskformer convert`.

    Args:
        as_json: print a JSON list with every setting of training and test.
    """
    entries = list_zoo()
    if as_json:
        print(json.dumps(entries, indent=1))
        return 0
    _print_table(entries)
    return 0


def _print_table(entries: list[ZooEntry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    is_terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if is_terminal else None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in ("classes", "parameters") else "left", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["backbone"],
            str(entry["num_classes"]),
            f"{entry['parameters'] / 1e6:.3f} M",
            entry["published_metric"],
            entry["hub_id"] or "-",
        )
    Console(width=None if is_terminal else _PLAIN_WIDTH, highlight=False).print(table)
