"""Converts checkpoint files: the authors' into a directory for `from_pretrained`, and back.

A destination appears complete or not at all: it is written beside its place and moved there at the end.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maskformer.checkpoints.architecture import recognise
from maskformer.checkpoints.loading import load_model, model_class
from maskformer.checkpoints.original import from_original, to_original
from maskformer.checkpoints.unpickling import read_weights
from maskformer.checkpoints.zoo import ZooEntry, find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.explanations import explained

# ImageNet's mean and standard deviation in units of one gray level, as every published model uses them.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
_DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
_BILINEAR = 2


@dataclass(frozen=True)
class Conversion:
    """What was converted: `zoo_name` is the published model whose settings were used, None when there is none."""

    path: str
    architecture: str
    backbone: str
    num_labels: int
    num_parameters: int
    zoo_name: str | None


@explained
def convert_original(
    src: str | Path, dst: str | Path, attention_heads: int = 8, zoo_name: str | None = None
) -> Conversion:
    """Convert a checkpoint file of the authors into a directory with weights, configuration and processor settings.

    Source: docs/authors.md#convert-a-checkpoint.

    Args:
        src: their .pkl (or a .pth of detectron2).
        dst: a directory that is missing or empty.
        attention_heads: heads of the transformer's attention, the one number that is not in the shapes.
        zoo_name: the published model whose image sizes (in pixels) and stuff classes to use; by default the one that
            has exactly this architecture and number of classes, if any.

    Raises:
        ValueError: `src` is no checkpoint of a MaskFormer or is refused, or `dst` holds something already.

    Examples:
        >>> from maskformer import MaskFormerConfig, MaskFormerForInstanceSegmentation, load_model
        >>> model = MaskFormerForInstanceSegmentation(MaskFormerConfig.from_zoo("r50-ade20k-150"))
        >>> model.save_pretrained("mine")
        >>> _ = export_original("mine", "theirs.pkl")
        >>> _ = convert_original("theirs.pkl", "back")
        >>> load_model("back").config.num_labels
        150
    """
    dst = Path(dst)
    _check_free(dst)
    entry = _zoo_entry(zoo_name)
    weights = read_weights(src)
    config, state = from_original(weights, attention_heads)
    entry = entry or recognise(config)
    if entry is not None:
        config.stuff_class_ids = _stuff_class_ids(entry, config)
    model = _filled_model(config, state)
    with _written_beside(dst) as partial:
        partial.mkdir()
        model.save_pretrained(partial)
        settings = processor_settings(config, weights, entry)
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        partial.joinpath("preprocessor_config.json").write_text(text, encoding="utf-8")
        if dst.exists():
            dst.rmdir()
    return _summary(dst, model, entry)


@explained
def export_original(src: str | Path, dst: str | Path) -> Conversion:
    """Write a checkpoint (directory, hub id or bundled name) as a .pkl in the authors' layout.

    Source: docs/authors.md#convert-a-checkpoint.

    Raises:
        ValueError: `src` is no checkpoint, its network has no form in the authors' layout, or `dst` exists.

    Examples:
        >>> _ = export_original("scenes", "scenes.pkl")
        >>> Path("scenes.pkl").stat().st_size > 10**7
        True
    """
    dst = Path(dst)
    if dst.exists():
        raise ValueError(f"{dst} exists already: give a file name that is free, or remove it first")
    model = load_model(src)
    weights = to_original(model.config, model.state_dict())
    # With an author named, detectron2 takes the names as they are instead of guessing at Caffe2's.
    arrays = {
        key: (weight.float() if weight.is_floating_point() else weight).numpy() for key, weight in weights.items()
    }
    with _written_beside(dst) as partial, partial.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "maskformer"}, file, protocol=4)
    return _summary(dst, model, recognise(model.config))


def processor_settings(config: MaskFormerConfig, weights: dict[str, Tensor], entry: ZooEntry | None) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: how the authors prepare images for this model.

    Sizes are in pixels, means and standard deviations for values in [0, 1]. The authors pad to a multiple of 32 (the
    COCO panoptic models not at all) and never stretch: `size_divisor` is 0.
    """
    entry = entry or {}
    size = _DEFAULT_SIZE
    if entry:
        size = {"shortest_edge": entry["min_size_test"], "longest_edge": entry["max_size_test"]}
    settings = {
        "image_processor_type": "MaskFormerImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        "size_divisor": 0,
        "pad_size_divisor": entry.get("pad_divisor", 32),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _per_channel(weights.get("pixel_mean"), _PIXEL_MEAN),
        "image_std": _per_channel(weights.get("pixel_std"), _PIXEL_STD),
        "ignore_index": entry.get("ignore_value", 255),
        "num_labels": config.num_labels,
    }
    if config.stuff_class_ids is not None:
        settings["label_ids_to_fuse"] = config.stuff_class_ids
    return settings


def _per_channel(stored: Tensor | None, default: tuple[float, ...]) -> list[float]:
    values = default if stored is None else stored.flatten().tolist()
    # Rounded, because float32 makes 103.53 / 255 = 0.406 a number of 17 digits.
    return [round(value / 255, 6) for value in values]


def _zoo_entry(zoo_name: str | None) -> ZooEntry | None:
    if zoo_name is None:
        return None
    entry = find_in_zoo(zoo_name)
    if entry is None:
        raise ValueError(f"there is no published model called {zoo_name!r}: `maskformer zoo` lists them")
    return entry


def _stuff_class_ids(entry: ZooEntry, config: MaskFormerConfig) -> list[int] | None:
    if entry["num_classes"] != config.num_labels:
        raise ValueError(
            f"the published model {entry['name']} has {entry['num_classes']} classes but the checkpoint has "
            f"{config.num_labels}: name the model the checkpoint belongs to, or none"
        )
    return entry["stuff_class_ids"]


def _filled_model(config: MaskFormerConfig, state: dict[str, Tensor]) -> Any:
    """The model with the weights in it; being the class that will load the file, it also checks every shape."""
    model = model_class((config.architectures or [""])[0])(config)
    own = {key: value.shape for key, value in model.state_dict().items()}
    misfits = sorted(key for key, value in state.items() if key in own and own[key] != value.shape)
    if misfits:
        key = misfits[0]
        raise ValueError(
            f"the weight for {key!r} has shape {list(state[key].shape)}, expected {list(own[key])} beside the other "
            "weights: the checkpoint is not of an architecture of the authors"
        )
    lost = sorted(state.keys() - own.keys())
    assert not lost, f"the key tables name weights that the network does not have: {lost[:3]}"
    missing = [key for key in model.load_state_dict(state, strict=False).missing_keys if "criterion." not in key]
    unfilled = [key for key in missing if not key.endswith(("relative_position_index", "num_batches_tracked"))]
    assert not unfilled, f"the key tables lack weights of the network: {unfilled[:3]}"
    return model


def _summary(dst: Path, model: Any, entry: ZooEntry | None) -> Conversion:
    return Conversion(
        path=str(dst),
        architecture=type(model).__name__,
        backbone=model.config.backbone_config.model_type,
        num_labels=model.config.num_labels,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        zoo_name=entry["name"] if entry else None,
    )


def _check_free(dst: Path) -> None:
    if dst.is_dir() and any(dst.iterdir()):
        raise ValueError(f"the directory {dst} is not empty: give one that is missing or empty")
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file, expected a directory that is missing or empty")


@contextmanager
def _written_beside(dst: Path) -> Iterator[Path]:
    """A path beside `dst` to write to, which takes the place of `dst` at the end or disappears after an error."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial = dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(dst)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
