"""`maskformer export`: a checkpoint as one file for onnxruntime or torch, compared with the network."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from maskformer.export.file import Exported

_optional = functools.partial(tyro.conf.arg, help_behavior_hint="")


def run(
    model: Annotated[str | None, _optional(metavar="MODEL")] = None,
    out: Annotated[Path | None, _optional(metavar="FILE")] = None,
    format: Annotated[Literal["onnx", "torch"] | None, _optional(metavar="onnx|torch")] = None,
    task: Annotated[Literal["semantic", "panoptic"] | None, _optional(metavar="semantic|panoptic")] = None,
    precision: Literal["float32", "float16", "int8"] = "float32",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Write a checkpoint as one file that runs without the model's code, for pictures of any number and size.

    The file carries the labels, sizes and normalisation. It is compared with the network at three sizes, one picture
    and three; a float32 file that differs is not kept. `maskformer predict --model FILE` runs it.

    Args:
        model: an id on the hub, a directory, or "scenes" (comes with the package; knows drawn scenes only).
        out: the file to write, ending in .onnx or .pt2 (torch.export.load).
        format: by default what the file's ending says.
        task: put this post-processing into the graph, so that it returns maps; by default it returns logits.
        precision: float16 halves the file; int8 (ONNX) stores the weights of matrix products in a quarter.
        as_json: print the comparison as one JSON object.
    """
    from maskformer.cli import UsageError

    if model is None or out is None:
        missing = "--model" if model is None else "--out"
        raise UsageError(f"export needs {missing}, as in: maskformer export --model scenes --out scenes.onnx")
    from maskformer.export.file import checked_format, export_checkpoint

    try:
        checked_format(out, format, precision)
    except ValueError as error:
        raise UsageError(str(error)) from error
    exported = export_checkpoint(model, out, task, precision, lambda step: print(step, file=sys.stderr))
    if as_json:
        import dataclasses
        import json

        content = {**dataclasses.asdict(exported), "largest_difference": exported.largest_difference}
        print(json.dumps({**content, "path": str(out)}))
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
