"""Exported files as networks: onnxruntime or a torch program in the place of the model, without its code.

The file carries `config.json` (labels, stuff classes) and `preprocessor_config.json` (sizes, normalisation) as text.

Shapes: B batch, Q queries, C classes, H W picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from maskformer.checkpoints.unpickling import first_line
from maskformer.configuration import PER_PIXEL_MODEL_TYPE, MaskFormerConfig, PerPixelBaselineConfig
from maskformer.processing.image_processor import MaskFormerImageProcessor

GraphTask = Literal["semantic", "panoptic"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
EXTRA = "pip install 'maskformer[export]'"


@dataclass(frozen=True)
class Description:
    """What a file says about itself: both configurations, the task in its graph (None: logits), its outputs."""

    config: MaskFormerConfig
    image_processor: MaskFormerImageProcessor
    task: GraphTask | None
    outputs: tuple[str, ...]

    def to_texts(self) -> dict[str, str]:
        """As it stands in the file."""
        fields = self.config.to_dict()
        fields.pop("_name_or_path", None)  # a path of this machine
        processor = self.image_processor.to_dict()
        texts = json.dumps(fields), json.dumps(processor), self.task or "", " ".join(self.outputs)
        return dict(zip(_TEXTS, texts, strict=True))

    @classmethod
    def from_texts(cls, texts: Mapping[str, Any], path: Path) -> Description:
        """Raises ValueError for a file of other origin."""
        config, processor, task, outputs = (texts.get(name) for name in _TEXTS)
        if not config or not processor or not outputs:
            raise ValueError(f"{path} does not say what it holds, expected a file of `maskformer export`")
        fields: dict[str, Any] = json.loads(config)
        per_pixel = fields.get("model_type") == PER_PIXEL_MODEL_TYPE
        built = (PerPixelBaselineConfig if per_pixel else MaskFormerConfig).from_dict(fields)
        image_processor = MaskFormerImageProcessor.from_dict(json.loads(processor))
        return cls(built, image_processor, task or None, tuple(outputs.split()))


_TEXTS = ("config.json", "preprocessor_config.json", "task", "outputs")


class ExportedNetwork(nn.Module):
    """Takes `pixel_values`, 33 pixels a side or more, and returns the file's outputs under their names."""

    def __init__(self, description: Description, run: Any) -> None:
        super().__init__()
        self.config, self.image_processor = description.config, description.image_processor
        self.graph_task, self.outputs = description.task, description.outputs
        self.run = run

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(self.outputs, self.run(pixel_values.float()), strict=True)))


def is_exported(name: str | Path) -> bool:
    """Whether `name` is meant as an exported file."""
    return Path(name).suffix in SUFFIXES.values()


def load_exported(name: str | Path, device: str | torch.device | None = None) -> ExportedNetwork:
    """The network of a file of `maskformer export`.

    Args:
        name: a path ending in .onnx or .pt2.
        device: default: the first GPU if there is one (and, for ONNX, an onnxruntime that can use it), else the CPU.

    Raises:
        ValueError: there is no such file, it cannot be read or was made otherwise, or the device cannot be used.
        ImportError: onnxruntime is not installed.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {name}: `maskformer export --model MODEL --out {name}` writes one")
    return open_exported(path, path.suffix == SUFFIXES["onnx"], device)


def open_exported(path: Path, is_onnx: bool, device: str | torch.device | None) -> ExportedNetwork:
    """As `load_exported`, whatever the file is called."""
    if not is_onnx:
        return _open_program(path, device)
    session = _onnx_session(path, device)

    def run(pixel_values: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {"pixel_values": pixel_values.cpu().numpy()})]

    return ExportedNetwork(Description.from_texts(session.get_modelmeta().custom_metadata_map, path), run)


def _open_program(path: Path, device: str | torch.device | None) -> ExportedNetwork:
    texts: dict[str, Any] = dict.fromkeys(_TEXTS, "")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        with path.open("rb") as file:
            program = torch.export.load(file, extra_files=texts)
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        raise ValueError(f"{path} is no torch program that this torch can read: {first_line(error)}") from error
    if place.type != "cpu":
        program = move_to_device_pass(program, place)
    # The method, as the traced module itself would be put into evaluation mode with the others, which it refuses.
    run: Any = program.module().forward
    return ExportedNetwork(Description.from_texts(texts, path), lambda pixel_values: run(pixel_values.to(place)))


def _onnx_session(path: Path, device: str | torch.device | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"running {path} needs onnxruntime: {EXTRA}") from error
    place, can = torch.device(device or "cuda"), "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device is not None and not (can and place.type == "cuda") and place.type != "cpu":
        raise ValueError(f"this onnxruntime cannot use {device}: pip install onnxruntime-gpu, or choose 'cpu'")
    providers: list[Any] = ["CPUExecutionProvider"]
    if can and place.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": place.index or 0}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: the warnings speak of a graph that nobody can change here
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no public base
        raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {first_line(error)}") from error


def graph_segments(
    outputs: Any, target_sizes: Sequence[tuple[int, int]], pixel_mask: Tensor
) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Maps [H, W] of a graph with post-processing, each at its picture's size (nearest), and their segments.

    Args:
        outputs: of an `ExportedNetwork` with a task.
        target_sizes: (height, width) of each picture.
        pixel_mask: [B, H', W'], 1 = picture; the rest is cropped.
    """
    first = 0 if hasattr(outputs, "class_scores") else 1
    scores = outputs.segment_scores if first else outputs.class_scores  # [B, Q] or [B, C]
    labels = outputs.segment_labels if first else torch.arange(scores.shape[1]).expand_as(scores)
    for size, mask, segmentation, *lists in zip(
        target_sizes, pixel_mask, outputs.segmentation, labels, scores, strict=True
    ):
        whole = segmentation[: int(mask[:, 0].sum()), : int(mask[0].sum())].cpu().numpy()
        rows, columns = (
            (2 * np.arange(length) + 1) * valid // (2 * length) for length, valid in zip(size, whole.shape, strict=True)
        )
        pairs = enumerate(zip(*(each.tolist() for each in lists), strict=True), first)
        infos = [{"id": id, "label_id": label, "score": round(score, 6)} for id, (label, score) in pairs if label >= 0]
        yield whole[rows[:, None], columns], infos
