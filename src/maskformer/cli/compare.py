"""`maskformer compare`: two checkpoints, or one in our class and in transformers', on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from maskformer.cli import options
from maskformer.cli.evaluate import Data, Images, ProtocolName, open_data, protocol_of
from maskformer.cli.progress import progress_bar
from maskformer.cli.tables import print_table, shown

if TYPE_CHECKING:
    from maskformer.evaluation.compare import Comparison


@dataclass(frozen=True)
class Command:
    """Compare two models image by image: difference of logits, agreement of maps, metric by metric."""

    a: Annotated[str, tyro.conf.Positional, options.optional(metavar="A")]
    """an id on the hub, a directory, or "scenes"; with "transformers:" before it, in transformers' class."""
    b: Annotated[str, tyro.conf.Positional, options.optional(metavar="B")]
    """likewise."""
    data: Data
    task: options.Task = None
    """by default the one of A."""
    split: options.Split = None
    """by default val, or the only one there is."""
    protocol: ProtocolName = "transformers"
    zoo: options.Name = None
    """the published model whose settings "paper" stands for, if A is not called like it."""
    by_order: bool = False
    """the models' classes are the data's in the same order, whatever their names."""
    limit: Images = None
    """only that many images, the first ones."""
    as_json: options.Json = False
    """print one JSON object instead of tables."""
    device: options.Device = None

    def run(self) -> int:
        options.check_counts(limit=self.limit)
        options.check_protocol(self.protocol, self.zoo)
        from maskformer.evaluation.compare import PEER, compare, load_for_comparison
        from maskformer.evaluation.loop import Options

        first = load_for_comparison(self.a, self.task, self.device)
        second = load_for_comparison(self.b, first.task, self.device)
        protocol = protocol_of(self.protocol, self.a.removeprefix(PEER), self.zoo, first.task)
        how = Options(protocol, by_order=self.by_order, limit=self.limit)
        dataset = open_data(self.data, self.split, first.task)
        with progress_bar("comparing") as progress:
            found = compare(first, second, dataset, first.task, how, progress)
        if self.as_json:
            print(json.dumps({"a": self.a, "b": self.b, "data": self.data, **found.to_dict()}))
        else:
            self._print(found)
        return 0

    def _print(self, found: Comparison) -> None:
        names = [Path(self.a).name, Path(self.b).name]
        print(f"{found.task}, {found.num_images} images, percent")
        rows = [
            [name, shown(x), shown(y), "-" if x is None or y is None else f"{y - x:+.3f}"]
            for name, (x, y) in found.metrics.items()
        ]
        print_table(["metric", *(names if names[0] != names[1] else (self.a, self.b)), "B - A"], rows)
        print(f"same class: {found.pixel_agreement:.4f} % of the pixels; {found.identical_maps} maps are identical")
        if found.map_agreement is not None:
            print(f"panoptic quality of B with A as truth: {found.map_agreement:.4f} %")
        for name, apart in found.logits.items():
            print(
                f"{name}: largest difference {apart.largest:.3g}, mean {apart.mean:.3g}, relative {apart.relative:.3g}"
            )
        if not found.logits:
            print("logits: of different shapes, not compared")
