"""The network that a training starts from: a checkpoint, with as much of it kept as fits, or random weights.

C classes.
"""

from __future__ import annotations

from typing import Any

import torch

from maskformer.checkpoints.loading import load_model, model_class, resolve_checkpoint
from maskformer.checkpoints.zoo import find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.data.dataset import SegmentationDataset
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.training.backbone_weights import load_backbone
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import small_network

_DEFAULT_CLASS = "MaskFormerForInstanceSegmentation"


def build_network(config: TrainingConfig, dataset: SegmentationDataset) -> tuple[Any, list[str]]:
    """The network for the classes of the data, in training mode, and sentences about where its weights come from.

    Raises:
        ValueError: no such checkpoint or architecture, or one that cannot learn the task.
    """
    torch.manual_seed(config.seed)
    fields = class_fields(config, dataset)
    if config.model is not None:
        model, told = _from_checkpoint(config.model, fields)
    else:
        name = config.network or "small"
        model, told = _from_architecture(name, fields), [f"starting from random weights of the network {name!r}"]
        if config.backbone_weights is not None:
            told += load_backbone(encoder_of(model), model.config, config.backbone_weights)
    if is_per_pixel(model) and dataset.task != "semantic":
        raise ValueError(f"a per-pixel baseline learns semantic segmentation only, got task={dataset.task!r}")
    if config.freeze_backbone:
        for parameter in encoder_of(model).parameters():
            parameter.requires_grad_(False)
        told.append("the backbone is frozen")
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train(), told


def class_fields(config: TrainingConfig, dataset: SegmentationDataset) -> dict[str, Any]:
    """What the configuration of the network says of the data's classes and of the loss."""
    labels = dataset.id2label
    if config.class_weights is not None and len(config.class_weights) != len(labels):
        raise ValueError(
            f"class_weights has {len(config.class_weights)} entries but the data has {len(labels)} classes: give one "
            "weight per class, in the order of `maskformer data check`"
        )
    return {
        "id2label": labels,
        "label2id": {name: label for label, name in labels.items()},
        "class_weights": config.class_weights,
        "stuff_class_ids": None if dataset.task == "semantic" else dataset.stuff_class_ids,
        "use_auxiliary_loss": config.deep_supervision,
        "deep_supervision": config.deep_supervision,
    }


def build_processor(config: TrainingConfig, dataset: SegmentationDataset) -> MaskFormerImageProcessor:
    """The image processor that goes with the trained network; mean and deviation are those of the first weights."""
    assert config.test_size is not None, "fit_sizes comes first"
    colors: dict[str, Any] = {}
    if config.model is not None:
        try:
            first = MaskFormerImageProcessor.from_pretrained(resolve_checkpoint(config.model))
            colors = {name: value for name, value in first.to_dict().items() if name in ("image_mean", "image_std")}
        except OSError:
            pass  # a model without a processor was trained with ImageNet's, as all published ones
    return MaskFormerImageProcessor(
        size={"shortest_edge": config.test_size, "longest_edge": max(config.test_size, config.test_max_size)},
        ignore_index=255,
        label_ids_to_fuse=None if dataset.task == "semantic" else dataset.stuff_class_ids,
        **colors,
    )


def is_per_pixel(model: Any) -> bool:
    """Whether the network is one of the per-pixel baselines."""
    return not hasattr(model, "criterion")


def encoder_of(model: Any) -> Any:
    """The backbone."""
    return getattr(model, "model", model).pixel_level_module.encoder


def _from_architecture(name: str, fields: dict[str, Any]) -> Any:
    num_labels = len(fields["id2label"])
    if name == "small":
        config = MaskFormerConfig(**{**small_network(), **fields})
    else:
        entry = find_in_zoo(name)
        if entry is None:
            raise ValueError(f"there is no network {name!r}: choose small or a model of `maskformer zoo`")
        config = MaskFormerConfig.from_zoo(name, num_labels=num_labels)
        config = _with_classes(type(config), config.to_dict(), fields)
    architecture = (config.architectures or [_DEFAULT_CLASS])[0]
    return model_class(architecture)(config)


def _from_checkpoint(name: str, fields: dict[str, Any]) -> tuple[Any, list[str]]:
    try:
        found, _ = MaskFormerConfig.get_config_dict(resolve_checkpoint(name))
    except OSError:
        found = {}  # load_model tells what is wrong
    architecture = (found.get("architectures") or [_DEFAULT_CLASS])[0]
    if not found or found.get("model_type") != MaskFormerConfig.model_type:
        load_model(name)
    cls: Any = model_class(architecture)
    config = _with_classes(cls.config_class, dict(found), fields)
    config.architectures = [architecture]
    loaded: Any = load_model(
        name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32
    )
    model, info = loaded
    anew = sorted({str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]})
    lost = sorted(set(info["missing_keys"]) - set(anew))
    if lost:
        raise ValueError(
            f"the checkpoint {name} lacks {len(lost)} weights of a {architecture}, {lost[0]!r} for one: it was made "
            "for another architecture"
        )
    return model, [f"starting from {name}", *_told(anew, found, fields["id2label"])]


def _with_classes(cls: Any, found: dict[str, Any], fields: dict[str, Any]) -> Any:
    """The configuration `found` with other classes; a baseline+ has a query for each."""
    found = {key: value for key, value in found.items() if key not in ("num_labels", "model_type")}
    if (found.get("architectures") or [""])[0] == "PerPixelBaselinePlus":
        found["decoder_config"] = {**found["decoder_config"], "num_queries": len(fields["id2label"])}
    return cls(**{**found, **fields})


def _told(anew: list[str], found: dict[str, Any], labels: dict[int, str]) -> list[str]:
    """What was started anew, or which kept outputs now mean other classes."""
    before = [str(name) for _, name in sorted((int(key), name) for key, name in (found.get("id2label") or {}).items())]
    if anew:
        return [f"{len(labels)} classes instead of {len(before)}: started anew are {', '.join(anew)}; all else is kept"]
    if before and before != list(labels.values()):
        return [f"the {len(labels)} class outputs fit and are kept, but are called differently than in the checkpoint"]
    return ["every weight is kept"]
