"""`maskformer export`: a checkpoint as one file for onnxruntime or torch, compared with the network."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskformer.cli import UsageError, options

if TYPE_CHECKING:
    from maskformer.export.file import Exported


@dataclasses.dataclass(frozen=True)
class Command:
    """Write a checkpoint as one file that runs without the model's code, for pictures of any number and size.

    The file carries the labels, sizes and normalisation. It is compared with the network at three sizes, one picture
    and three; a float32 file that differs is not kept. `maskformer predict --model FILE` runs it.
    """

    model: options.Model
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """the file to write, ending in .onnx or .pt2 (torch.export.load)."""
    format: Annotated[Literal["onnx", "torch"] | None, options.optional(metavar="onnx|torch")] = None
    """by default what the file's ending says."""
    task: Annotated[Literal["semantic", "panoptic"] | None, options.optional(metavar="semantic|panoptic")] = None
    """put this post-processing into the graph, so that it returns maps; by default it returns logits."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """float16 halves the file; int8 (ONNX) stores the weights of matrix products in a quarter."""
    as_json: options.Json = False
    """print the comparison as one JSON object."""

    def run(self) -> int:
        from maskformer.export.file import checked_format, export_checkpoint

        try:
            checked_format(self.out, self.format, self.precision)
        except ValueError as error:
            raise UsageError(str(error)) from error
        exported = export_checkpoint(
            self.model, self.out, self.task, self.precision, lambda step: print(step, file=sys.stderr)
        )
        if self.as_json:
            content = {**dataclasses.asdict(exported), "largest_difference": exported.largest_difference}
            print(json.dumps({**content, "path": str(self.out)}))
        else:
            _print_table(exported)
        return 0


def _print_table(exported: Exported) -> None:
    content = f"{exported.task} maps" if exported.task else "logits"
    print(f"{exported.path}: {content}, {exported.precision}, {exported.size / 1e6:.1f} MB")
    print(f"outputs: {', '.join(exported.outputs)}")
    print("height x width  batch  difference  times as fast")
    for each in exported.comparisons:
        size, speed = f"{each.size[0]} x {each.size[1]}", each.eager_seconds / each.seconds
        print(f"{size:>14}  {each.batch:>5}  {each.difference:>10.1e}  {speed:>13.2f}")
    unit = "as a share of the pixels" if exported.task else "relative to the largest logit"
    print(f"largest difference from the network: {exported.largest_difference:.1e} {unit}")
