"""A graph traced by torch.export for every batch, height and width, and such a program as one .pt2 file."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from maskformer.checkpoints.writing import torch_file
from maskformer.export.graph import LogitsGraph

# Sides that are no multiples of a window or each other, lest the tracer take a relation of the two for a rule.
EXAMPLE_SIZE = (96, 130)


def trace(graph: LogitsGraph, num_channels: int) -> ExportedProgram:
    """The program of `graph`: one input `pixel_values` [B, num_channels, H, W] of symbolic B, H and W."""
    dynamic = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    example = torch.zeros(2, num_channels, *EXAMPLE_SIZE)
    with torch.no_grad(), quiet():
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=dynamic, strict=False)


def write_program(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    """Write `program` to `path`, with `texts` (see `Description.to_texts`) beside it."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    with quiet(), torch_file(path) as file:
        torch.export.save(program, file, extra_files=dict(texts))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves: deprecations inside torch, packages that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
