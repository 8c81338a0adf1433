"""A traced program as one ONNX file, by torch's own exporter; int8 weights by onnxruntime's own quantiser."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from maskformer.checkpoints.exported import EXTRA
from maskformer.export.torch_program import quiet

LARGEST_WEIGHTS = 2**31 - 2**24
"""In bytes: protobuf ends at 2 GiB, and the graph needs some of it."""


def require_onnx() -> None:
    """Raises ImportError where the extra is missing, before anything is computed."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX files need onnx, onnxscript and onnxruntime: {EXTRA}") from error


def write_onnx(
    program: ExportedProgram, path: Path, output_names: Sequence[str], texts: Mapping[str, str], int8: bool
) -> None:
    """Write `program` to `path` with `texts` (see `Description.to_texts`) as metadata; `int8` as for `--precision`.

    Raises:
        ValueError: more weights than an ONNX file can hold.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > LARGEST_WEIGHTS:
        raise ValueError(
            f"the weights take {size / 2**30:.1f} GiB and one ONNX file holds 2: choose the precision float16, or a "
            "torch program (.pt2)"
        )
    with quiet():
        made: Any = torch.onnx.export(
            program, dynamo=True, input_names=["pixel_values"], output_names=list(output_names), verbose=False
        )
    model = _quantized(made.model_proto) if int8 else made.model_proto
    _name_sizes(model.graph)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # paths of this machine
    model.producer_name = "maskformer"
    onnx.helper.set_model_props(model, dict(texts))
    onnx.save(model, str(path))


def _quantized(model: Any) -> Any:
    """Matrix products alone, which is where Swin spends its time; convolutions keep their weights."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        target, kinds = Path(folder) / "int8.onnx", ["MatMul", "Gemm"]
        quantize_dynamic(model, target, kinds, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(str(target))


def _name_sizes(graph: Any) -> None:
    """batch, height and width in the place of the exporter's numbered symbols."""
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param)
