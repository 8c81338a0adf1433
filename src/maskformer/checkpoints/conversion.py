"""Converts checkpoint files: the authors' into a directory for `from_pretrained`, and back."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from maskformer.checkpoints.architecture import recognise
from maskformer.checkpoints.loading import architecture_of, load_model, model_class
from maskformer.checkpoints.original import CONSTANTS, from_original, to_original
from maskformer.checkpoints.unpickling import read_weights
from maskformer.checkpoints.writing import written_whole
from maskformer.checkpoints.zoo import ZooEntry, find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.explanations import explained
from maskformer.processing.image_processor import MaskFormerImageProcessor


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
    weights = read_weights(src)
    config, state = from_original(weights, attention_heads)
    entry = _published(zoo_name, config)
    if entry is not None:
        config.stuff_class_ids = entry["stuff_class_ids"]
    model = _filled_model(config, state)
    with written_whole(dst) as partial:
        model.save_pretrained(partial)
        build_processor(config, weights, entry).save_pretrained(partial)
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
    with written_whole(dst) as partial, partial.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "maskformer"}, file, protocol=4)
    return _summary(dst, model, recognise(model.config))


def build_processor(
    config: MaskFormerConfig, weights: dict[str, Tensor], entry: ZooEntry | None
) -> MaskFormerImageProcessor:
    """How the authors prepare images for this model.

    They pad to a multiple of 32 (the COCO panoptic models not at all) and never stretch: `size_divisor` is 0. Mean and
    deviation are ImageNet's, as in every published model, where the file has no others.
    """
    entry = entry or {"min_size_test": 800, "max_size_test": 1333, "pad_divisor": 32, "ignore_value": 255}
    # Of gray levels there; rounded, because float32 makes 103.53 / 255 = 0.406 a number of 17 digits.
    colors: dict[str, Any] = {
        f"image_{name}": [round(value / 255, 6) for value in weights[f"pixel_{name}"].flatten().tolist()]
        for name in ("mean", "std")
        if f"pixel_{name}" in weights
    }
    return MaskFormerImageProcessor(
        size={"shortest_edge": entry["min_size_test"], "longest_edge": entry["max_size_test"]},
        size_divisor=0,
        pad_size_divisor=entry["pad_divisor"],
        ignore_index=entry["ignore_value"],
        num_labels=config.num_labels,
        label_ids_to_fuse=config.stuff_class_ids,
        **colors,
    )


def _published(zoo_name: str | None, config: MaskFormerConfig) -> ZooEntry | None:
    """The published model whose settings are to be used."""
    if zoo_name is None:
        return recognise(config)
    entry = find_in_zoo(zoo_name)
    if entry is None:
        raise ValueError(f"there is no published model called {zoo_name!r}: `maskformer zoo` lists them")
    if entry["num_classes"] != config.num_labels:
        raise ValueError(
            f"the published model {entry['name']} has {entry['num_classes']} classes but the checkpoint has "
            f"{config.num_labels}: name the model the checkpoint belongs to, or none"
        )
    return entry


def _filled_model(config: MaskFormerConfig, state: dict[str, Tensor]) -> Any:
    """The model with the weights in it; being the class that will load the file, it also checks every shape."""
    model = model_class(architecture_of(config))(config)
    own = {key: value.shape for key, value in model.state_dict().items()}
    misfits = sorted(key for key, value in state.items() if own[key] != value.shape)
    if misfits:
        key = misfits[0]
        raise ValueError(
            f"the weight for {key!r} has shape {list(state[key].shape)}, expected {list(own[key])} beside the other "
            "weights: the checkpoint is not of an architecture of the authors"
        )
    unfilled = [key for key in model.load_state_dict(state, strict=False).missing_keys if not CONSTANTS.search(key)]
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
