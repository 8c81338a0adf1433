"""From a checkpoint to one checked file: trace, write beside the target, compare with the network, then rename."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskformer.checkpoints.exported import SUFFIXES, Description, GraphTask, is_exported, open_exported
from maskformer.export.check import Comparison, compare
from maskformer.export.graph import LogitsGraph, PanopticGraph, SemanticGraph
from maskformer.export.onnx import require_onnx, write_onnx
from maskformer.export.torch_program import trace, write_program
from maskformer.inference import Segmenter
from maskformer.results import write_whole

Format = Literal["onnx", "torch"]
Precision = Literal["float32", "float16", "int8"]

LARGEST_DIFFERENCE = {None: 1e-4, "semantic": 1e-3, "panoptic": 1e-3}
"""Of a float32 file, by the task in its graph; see `Comparison`."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, its size in bytes, and how it compares with the network."""

    path: Path
    task: GraphTask | None
    precision: Precision
    outputs: tuple[str, ...]
    size: int
    comparisons: tuple[Comparison, ...]

    @property
    def largest_difference(self) -> float:
        """See `Comparison`."""
        return worst_of(self.comparisons).difference


def export_checkpoint(
    model: str | Path,
    out: Path,
    task: GraphTask | None = None,
    precision: Precision = "float32",
    report: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write `model` as one file that needs none of its code, and compare it with the network.

    Args:
        model: as for `Segmenter.from_pretrained`.
        out: ends in .onnx or .pt2; replaced if it exists, left alone if anything fails.
        task: whose post-processing goes into the graph, with its default thresholds; None: logits.
        precision: "float16" halves the file, "int8" (ONNX) stores the weights of matrix products in a quarter.
        report: called with each step as it begins.

    Raises:
        ValueError: no such checkpoint, a task it cannot do, an impossible file, or a float32 file that differs from
            the network.
        ImportError: the extra [export] is missing.
    """
    is_onnx = checked_format(out, None, precision) == "onnx"
    if is_exported(model):
        raise ValueError(f"{model} is an exported file already: give the checkpoint it was made of")
    if not out.parent.is_dir():
        raise ValueError(f"there is no directory {out.parent}: create it first")
    if is_onnx:
        require_onnx()
    report(f"loading {model}")
    source = Segmenter.from_pretrained(model, task, "cpu")
    graph = _graph(source, task, half=precision == "float16")
    config: Any = source.model.config
    texts = Description(config, source.image_processor, task, graph.output_names).to_texts()
    report("tracing the network")
    program = trace(graph, source.num_channels)
    comparisons: list[Comparison] = []

    def write(part: Path) -> None:
        report(f"writing {out}")
        if is_onnx:
            write_onnx(program, part, graph.output_names, texts, precision == "int8")
        else:
            write_program(program, part, texts)
        report("comparing with the network")
        comparisons.extend(compare(open_exported(part, is_onnx, "cpu"), source))
        if precision == "float32":
            _refuse_difference(comparisons, LARGEST_DIFFERENCE[task])

    write_whole(out, write)
    return Exported(out, task, precision, graph.output_names, out.stat().st_size, tuple(comparisons))


def checked_format(out: Path, format: Format | None, precision: Precision) -> Format:
    """The format of `out`; ValueError where its ending, `format` and `precision` do not go together."""
    by_suffix: dict[str, Any] = {suffix: name for name, suffix in SUFFIXES.items()}
    if out.suffix not in by_suffix or out.is_dir():
        raise ValueError(f"{out} cannot be written, expected the name of a file ending in .onnx or .pt2")
    found: Format = by_suffix[out.suffix]
    if format not in (None, found):
        raise ValueError(f"{out} ends in {out.suffix}, expected {SUFFIXES[format]} for the format {format}")
    if precision == "int8" and found != "onnx":
        raise ValueError("int8 weights exist in ONNX files only: choose float16, or a file ending in .onnx")
    return found


def _graph(source: Segmenter, task: GraphTask | None, half: bool) -> LogitsGraph:
    network = copy.deepcopy(source.model).half() if half else source.model
    if task == "panoptic":
        return PanopticGraph(network, source.stuff_ids or frozenset())
    return SemanticGraph(network) if task else LogitsGraph(network)


def worst_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The one that differs most; one that is not a number at all is worse than any."""
    return comparisons[int(np.argmax([each.difference for each in comparisons]))]


def _refuse_difference(comparisons: list[Comparison], allowed: float) -> None:
    worst = worst_of(comparisons)
    if not worst.difference <= allowed:
        height, width = worst.size
        raise ValueError(
            f"the exported graph differs from the network by {worst.difference:.1e} (allowed {allowed:g}) for "
            f"{worst.batch} x {height} x {width}, and is not kept: report it with the checkpoint's config.json"
        )
