"""The network that a training starts from: a checkpoint, with as much of it kept as fits, or random weights.

C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from maskformer.checkpoints.loading import (
    architecture_of,
    load_config,
    load_model,
    mismatched_weights,
    model_class,
    resolve_checkpoint,
)
from maskformer.checkpoints.zoo import find_in_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.data.dataset import SegmentationDataset
from maskformer.modeling.per_pixel import ignored_label
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.training.backbone_weights import load_backbone
from maskformer.training.config import TrainingConfig
from maskformer.training.recipes import small_network


def build_network(config: TrainingConfig, dataset: SegmentationDataset) -> tuple[Any, list[str]]:
    """The network for the classes of the data, and sentences about where its weights come from.

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
    return model, told


def set_learning(model: Any, config: TrainingConfig) -> None:
    """Training mode, in which a backbone out of a checkpoint, or a frozen one, normalises with the statistics it has.

    Those of a small batch of few pictures are worse: with them, a model that fits already is spoilt by training on.
    """
    model.train()
    if config.model is not None or config.freeze_backbone:
        for module in encoder_of(model).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def class_fields(config: TrainingConfig, dataset: SegmentationDataset) -> dict[str, Any]:
    """What the configuration of the network says of the data's classes and of the loss."""
    labels = dataset.id2label
    return {
        "id2label": labels,
        "label2id": {name: label for label, name in labels.items()},
        "class_weights": config.class_weights,
        "stuff_class_ids": _stuff_ids(dataset),
        "deep_supervision": config.deep_supervision,
    }


def _stuff_ids(dataset: SegmentationDataset) -> list[int] | None:
    """What the checkpoint says of stuff, by which its task is known: nothing (semantic), none (instance), or which."""
    if dataset.task == "semantic":
        return None
    return [] if dataset.task == "instance" else dataset.stuff_class_ids


def build_processor(config: TrainingConfig, dataset: SegmentationDataset) -> MaskFormerImageProcessor:
    """The image processor that goes with the trained network; mean and deviation are those of the first weights.

    Raises:
        ValueError: those cannot be read.
    """
    assert config.test_size is not None, "fit_sizes comes first"
    colors: dict[str, Any] = {}
    if config.model is not None:
        checkpoint = resolve_checkpoint(config.model)
        try:
            first: Any = MaskFormerImageProcessor.from_pretrained(checkpoint)
            colors = {"image_mean": first.image_mean, "image_std": first.image_std}
        except OSError as error:  # a model without a processor was trained with ImageNet's, as all published ones
            if Path(checkpoint, "preprocessor_config.json").is_file():
                raise ValueError(f"the preprocessor_config.json of {config.model} is damaged") from error
    return MaskFormerImageProcessor(
        size={"shortest_edge": config.test_size, "longest_edge": max(config.test_size, config.test_max_size)},
        ignore_index=ignored_label(len(dataset.categories)),
        label_ids_to_fuse=_stuff_ids(dataset),
        **colors,
    )


def is_per_pixel(model: Any) -> bool:
    """Whether the network is one of the per-pixel baselines."""
    return not hasattr(model, "criterion")


def encoder_of(model: Any) -> Any:
    """The backbone."""
    return getattr(model, "model", model).pixel_level_module.encoder


def _from_architecture(name: str, fields: dict[str, Any]) -> Any:
    if name == "small":
        config = MaskFormerConfig(**small_network(), **fields)
    elif find_in_zoo(name) is None:
        raise ValueError(f"there is no network {name!r}: choose small or a model of `maskformer zoo`")
    else:
        config = _with_classes(MaskFormerConfig.from_zoo(name), fields)
    return model_class(architecture_of(config))(config)


def _from_checkpoint(name: str, fields: dict[str, Any]) -> tuple[Any, list[str]]:
    before = load_config(name)
    model, info = load_model(
        name,
        config=_with_classes(before, fields),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, for this one option
    return model, [f"starting from {name}", _kept(mismatched_weights(info), before, fields["id2label"])]


def _with_classes(config: MaskFormerConfig, fields: dict[str, Any]) -> MaskFormerConfig:
    """The configuration with other classes; a baseline+ has a query for each."""
    found = {key: value for key, value in config.to_dict().items() if key not in ("num_labels", "model_type")}
    if architecture_of(config) == "PerPixelBaselinePlus":
        found["decoder_config"] = {**found["decoder_config"], "num_queries": len(fields["id2label"])}
    return type(config)(**{**found, **fields})


def _kept(anew: list[str], config: MaskFormerConfig, labels: dict[int, str]) -> str:
    """What was started anew, or which kept outputs now mean other classes."""
    before = [name for _, name in sorted((config.id2label or {}).items())]
    if anew:
        return f"{len(labels)} classes instead of {len(before)}: started anew are {', '.join(anew)}; all else is kept"
    if before != list(labels.values()):
        return f"the {len(labels)} class outputs fit and are kept, but are called differently than in the checkpoint"
    return "every weight is kept"
