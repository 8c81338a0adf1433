"""Finds a checkpoint by the name a user gives it and loads it into the class it was made with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

import maskformer
from maskformer.checkpoints.zoo import find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.explanations import explained

if TYPE_CHECKING:
    from maskformer.modeling.maskformer import MaskFormerPreTrainedModel

BUNDLED = "scenes"

_CLASSES = ("MaskFormerForInstanceSegmentation", "MaskFormerModel", "PerPixelBaseline", "PerPixelBaselinePlus")
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


def architecture_of(config: MaskFormerConfig) -> str:
    """The name of the class that a configuration was made for."""
    return (config.architectures or _CLASSES)[0]


def model_class(architecture: str) -> type[MaskFormerPreTrainedModel]:
    """The class called `architecture` in a configuration's `architectures`.

    Raises:
        ValueError: it is none of this package's.
    """
    if architecture not in _CLASSES:
        raise ValueError(f"the architecture is {architecture!r}, expected one of {', '.join(_CLASSES)}")
    return getattr(maskformer, architecture)


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
    given = kwargs.get("config")
    if not isinstance(given, MaskFormerConfig):
        given = load_config(path_or_hub_id, **{name: value for name, value in kwargs.items() if name != "config"})
    cls: Any = model_class(architecture_of(given))
    wants_info = kwargs.pop("output_loading_info", False)
    with _reading(path_or_hub_id, checkpoint):
        model, info = cls.from_pretrained(checkpoint, output_loading_info=True, **kwargs)
    missing = sorted(set(info["missing_keys"]) - set(mismatched_weights(info)))
    if missing:
        raise ValueError(
            f"the checkpoint {path_or_hub_id} lacks {len(missing)} weights of a {type(model).__name__}, "
            f"{missing[0]!r} for one: it was made for another architecture"
        )
    return (model, info) if wants_info else model  # pyright: ignore[reportReturnType]


def load_config(path_or_hub_id: str | Path, **kwargs: Any) -> MaskFormerConfig:
    """The configuration of a checkpoint; arguments and errors as for `load_model`."""
    checkpoint = resolve_checkpoint(path_or_hub_id)
    with _reading(path_or_hub_id, checkpoint):
        fields, _ = MaskFormerConfig.get_config_dict(checkpoint, **kwargs)
        if not fields:
            raise OSError("no configuration")
    if fields.get("model_type") != MaskFormerConfig.model_type:
        raise ValueError(
            f"{checkpoint} holds a model of type {fields.get('model_type')!r}, expected a MaskFormer or a per-pixel "
            "baseline"
        )
    cls: Any = model_class((fields.get("architectures") or _CLASSES)[0])
    return cls.config_class.from_dict(fields)


def mismatched_weights(info: dict[str, Any]) -> list[str]:
    """Names of the weights that were started anew, from what `load_model` says with `output_loading_info=True`."""
    return sorted({str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]})


@contextlib.contextmanager
def _reading(name: str | Path, checkpoint: str) -> Iterator[None]:
    """Within, what transformers cannot read is one sentence."""
    try:
        yield
    except OSError as error:
        if Path(checkpoint).is_dir():
            inside = Path(checkpoint, "model")  # of a training's directory
            hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
            wanted = f"expected config.json and model.safetensors in it{hint}"
            raise ValueError(f"the directory {name} holds no readable checkpoint, {wanted}") from error
        raise ValueError(
            f"{name} is no directory here, and no checkpoint of that id can be had from the hub: it does not exist "
            "there, needs a log-in, or cannot be reached and is not in the local cache"
        ) from error
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"the files of checkpoint {name} are damaged: {error}") from error
    except (AttributeError, TypeError) as error:  # of transformers, about JSON that is no object
        files = sorted(Path(checkpoint).glob("*.json"))
        odd = [file.name for file in files if not isinstance(json.loads(file.read_bytes()), dict)]
        if not odd:
            raise
        raise ValueError(f"the files of checkpoint {name} are damaged: {odd[0]} has no names and values") from error
    except (UnpicklingError, EOFError, IndexError, RuntimeError) as error:  # of torch, about pytorch_model.bin
        if not isinstance(error, RuntimeError) or "PytorchStreamReader" in str(error):
            raise ValueError(f"the files of checkpoint {name} are damaged, or hold more than weights") from error
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"the weights of {name} do not have the shapes its configuration and your overrides ask for: "
            "pass ignore_mismatched_sizes=True to start those layers anew"
        ) from error
