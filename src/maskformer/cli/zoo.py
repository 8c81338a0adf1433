"""`maskformer zoo`: the 30 published models."""

from __future__ import annotations

import json
from dataclasses import dataclass

from maskformer.checkpoints.zoo import list_zoo
from maskformer.cli import options
from maskformer.cli.tables import print_table

_COLUMNS = ("name", "backbone", "classes", "parameters", "published", "weights on the hub")


@dataclass(frozen=True)
class Command:
    """List the models the authors published, with their results (percent, one scale) and where to get weights.

    Models without weights on the hub: download the authors' file and run `maskformer convert`.
    """

    as_json: options.Json = False
    """print a JSON list with every setting of training and test."""

    def run(self) -> int:
        entries = list_zoo()
        if self.as_json:
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
