"""`maskformer zoo`: the 30 published models."""

from __future__ import annotations

import json
from typing import Annotated

import tyro

from maskformer.checkpoints.zoo import list_zoo
from maskformer.cli.tables import print_table

_COLUMNS = ("name", "backbone", "classes", "parameters", "published", "weights on the hub")


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
    rows = [
        [
            entry["name"],
            entry["backbone"],
            str(entry["num_classes"]),
            f"{entry['parameters'] / 1e6:.3f} M",
            entry["published_metric"],
            entry["hub_id"] or "-",
        ]
        for entry in entries
    ]
    print_table(_COLUMNS, rows, left=(0, 1, 4, 5))
    return 0
