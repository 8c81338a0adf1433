"""Finds a checkpoint by the name a user gives it and loads it into the class it was made with."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from maskformer.checkpoints.zoo import find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.explanations import explained

if TYPE_CHECKING:
    from maskformer.modeling.maskformer import MaskFormerPreTrainedModel

BUNDLED = "scenes"

_CLASSES = {
    "MaskFormerForInstanceSegmentation": "maskformer.modeling.maskformer",
    "MaskFormerModel": "maskformer.modeling.maskformer",
    "PerPixelBaseline": "maskformer.modeling.per_pixel",
    "PerPixelBaselinePlus": "maskformer.modeling.per_pixel",
}
_DEFAULT_CLASS = "MaskFormerForInstanceSegmentation"
_ORIGINAL_SUFFIXES = (".pkl", ".pth", ".pt")


def resolve_checkpoint(name: str | Path) -> str:
    """What to hand to `from_pretrained` for the checkpoint a user calls `name`: a directory, or an id on the hub.

    `name` is "scenes" (the checkpoint that comes with the package), a directory, a name of the zoo whose converted
    weights are on the hub, or an id on the hub. The hub is not asked.

    Raises:
        ValueError: a file instead of a directory, a path where nothing is, or a zoo model that must be converted first.
    """
    text, path = str(name), Path(name).expanduser()
    if text == BUNDLED:
        return _bundled_directory()
    if path.is_dir():
        return str(path)
    if path.is_file():
        if path.suffix in _ORIGINAL_SUFFIXES:
            raise ValueError(f"{name} is in the authors' format: run `maskformer convert {name} DIR` and load DIR")
        raise ValueError(f"{name} is a file, expected the directory of a checkpoint, with its config.json")
    entry = find_in_zoo(text)
    if entry is not None:
        if entry["hub_id"] is None:
            raise ValueError(
                f"the weights of {name} are not on the hub in this format: download the authors' .pkl file and run "
                "`maskformer convert FILE.pkl DIR`"
            )
        return entry["hub_id"]
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or path.suffix in _ORIGINAL_SUFFIXES:
        raise ValueError(f"there is no checkpoint at {name}: give a directory, an id on the hub, or '{BUNDLED}'")
    return text


def _bundled_directory() -> str:
    directory = Path(str(resources.files("maskformer.checkpoints").joinpath("bundled", BUNDLED)))
    if not directory.joinpath("config.json").is_file():
        raise ValueError(
            f"the bundled checkpoint '{BUNDLED}' is not part of this installation: install the package again"
        )
    return str(directory)


def model_class(architecture: str) -> type[MaskFormerPreTrainedModel]:
    """The class called `architecture` in a configuration's `architectures`.

    Raises:
        ValueError: it is none of this package's.
    """
    if architecture not in _CLASSES:
        raise ValueError(f"the architecture is {architecture!r}, expected one of {', '.join(_CLASSES)}")
    return getattr(importlib.import_module(_CLASSES[architecture]), architecture)


@explained
def load_model(path_or_hub_id: str | Path, **kwargs: Any) -> MaskFormerPreTrainedModel:
    """The model of a checkpoint, in the class its configuration names, in evaluation mode.

    Source: docs/messages.md#checkpoints.

    Args:
        path_or_hub_id: see `resolve_checkpoint`.
        **kwargs: for `from_pretrained`: `revision`, `cache_dir`, `dtype`, `num_labels`, ... With `num_labels` other
            than the checkpoint's, also pass `ignore_mismatched_sizes=True`: the class predictor starts anew.

    Raises:
        ValueError: no such checkpoint, or it cannot be reached, is damaged, is of another model or lacks weights.

    Examples:
        >>> model = load_model("scenes")
        >>> type(model).__name__, model.config.num_labels
        ('MaskFormerForInstanceSegmentation', 14)
    """
    checkpoint = resolve_checkpoint(path_or_hub_id)
    if str(path_or_hub_id) == BUNDLED:
        kwargs.setdefault("dtype", torch.float32)  # stored in half precision to keep the package small
    try:
        found: Any = model_class(_architecture(checkpoint, kwargs))
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = found.from_pretrained(checkpoint, output_loading_info=True, **kwargs)
    except OSError as error:
        raise ValueError(_not_found(path_or_hub_id, checkpoint)) from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"the files of checkpoint {path_or_hub_id} are damaged: {error}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"the weights of {path_or_hub_id} do not have the shapes its configuration and your overrides ask for: "
            "pass ignore_mismatched_sizes=True to start those layers anew"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing and not kwargs.get("ignore_mismatched_sizes"):
        raise ValueError(
            f"the checkpoint {path_or_hub_id} lacks {len(missing)} weights of a {type(model).__name__}, "
            f"{missing[0]!r} for one: it was made for another architecture"
        )
    return (model, info) if wants_info else model  # pyright: ignore[reportReturnType]


def _architecture(checkpoint: str, kwargs: dict[str, Any]) -> str:
    given = kwargs.get("config")
    if isinstance(given, MaskFormerConfig):
        return (given.architectures or [_DEFAULT_CLASS])[0]
    fields, _ = MaskFormerConfig.get_config_dict(checkpoint, **{k: v for k, v in kwargs.items() if k != "config"})
    if not fields:
        raise OSError(f"{checkpoint} has no configuration")
    if fields.get("model_type") != MaskFormerConfig.model_type:
        raise ValueError(
            f"{checkpoint} holds a model of type {fields.get('model_type')!r}, expected a MaskFormer or a per-pixel "
            "baseline"
        )
    return (fields.get("architectures") or [_DEFAULT_CLASS])[0]


def _not_found(name: str | Path, checkpoint: str) -> str:
    if Path(checkpoint).is_dir():
        return f"the directory {name} holds no readable checkpoint, expected config.json and model.safetensors in it"
    return (
        f"{name} is no directory here, and no checkpoint of that id can be had from the hub: it does not exist there, "
        "needs a log-in, or cannot be reached and is not in the local cache"
    )
