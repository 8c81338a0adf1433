"""Every setting of a training, in one flat form that YAML files and the command line share (paper, section 4).

A setting that is not given comes from the recipe. Reading this file loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# What may change between a training and its continuation without changing what it computes.
_FREE = {"out", "workers", "save_every", "keep", "log_every", "trackers", "device", "sharded", "push_to_hub", "private"}


class TrainingConfig(BaseModel):
    """All settings, in a table below. Sizes are in pixels, (height, width); counts of images are over all processes.

    Source: arXiv 2107.06278, section 4.1 (training settings).

    Raises:
        ValueError: a setting that is unknown, missing or outside its range. It is pydantic's ValidationError; `resolve`
            says it in one sentence.

    Examples:
        >>> config = TrainingConfig(data="pictures", out="run", steps=500)
        >>> config.learning_rate, config.schedule
        (0.0001, 'poly')
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # What
    data: str = Field(description="a directory in a format that `maskformer data check` knows, hub:NAME, or scenes")
    out: Path = Field(description="directory of the run: log, checkpoints, pictures and the final model")
    recipe: str = Field("small", description="small (own data), scenes, or a published model of `maskformer zoo`")
    model: str | None = Field(None, description="checkpoint to start from: a directory, an id on the hub, or scenes")
    network: str | None = Field(None, description="architecture to start at random: small, or a name of the zoo")
    backbone_weights: str | None = Field(
        None, description="weights of the network's backbone: a directory, an id on the hub, or the authors' .pkl, .pth"
    )
    split: str = Field("train", description="split to train on")
    eval_split: str = Field("val", description="split to evaluate on, if the data has it")
    format: str | None = Field(None, description="format of the data, where a directory has several")
    task: Literal["semantic", "instance", "panoptic"] | None = Field(
        None, description="by default what the annotation is made for"
    )
    check_images: int | None = Field(None, ge=1, description="check so many images before the start instead of all")

    # How long, how much at once
    steps: int = Field(2000, ge=1, description="optimizer steps")
    batch_size: int = Field(8, ge=1, description="images of one step, over all processes and micro-batches")
    accumulation: int = Field(1, ge=1, description="micro-batches that a step is computed in, to save memory")
    seed: int = Field(0, ge=0, description="of weights, data order, augmentation and dropout")
    shuffle: bool = Field(True, description="an order of its own in each epoch; False: that of the data")

    # Optimizer (AdamW) and schedule
    learning_rate: float = Field(1e-4, gt=0, description="at the reference batch; scaled with the batch")
    reference_batch: int = Field(8, ge=1, description="batch that the learning rate is meant for")
    backbone_multiplier: float = Field(0.1, ge=0, description="factor on the backbone's learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of weights, but for the next three")
    weight_decay_bias: float | None = Field(None, ge=0, description="of biases; by default that of the weights")
    weight_decay_norm: float = Field(0.0, ge=0, description="of normalisation layers")
    weight_decay_embed: float = Field(0.0, ge=0, description="of embeddings and Swin's position bias tables")
    clip_norm: float = Field(0.01, ge=0, description="largest norm of the gradient of the whole model; 0: no limit")
    schedule: Literal["poly", "steps", "cosine"] = Field("poly", description="how the learning rate falls")
    poly_power: float = Field(0.9, gt=0, description="exponent of poly")
    final_share: float = Field(0.0, ge=0, le=1, description="share of the learning rate that poly and cosine end at")
    milestones: list[float] = Field([2 / 3], description="shares of the training after which the schedule steps down")
    gamma: float = Field(0.1, gt=0, description="factor of each step down")
    warm_up_steps: int = Field(0, ge=0, description="steps of linear warm-up; cosine falls after it, the others in it")
    warm_up_factor: float = Field(0.001, ge=0, le=1, description="share of the learning rate that warm-up starts at")

    # Network and loss
    freeze_backbone: bool = Field(False, description="train only what is behind the backbone")
    deep_supervision: bool = Field(True, description="loss on every layer of the transformer decoder")
    class_weights: list[float] | None = Field(None, description="weight of each class in the cross entropy")
    leave_out_ignored: bool = Field(True, description="ignored pixels, crowds and padding count in no mask loss")
    target_stride: Literal[1, 2, 4] = Field(1, description="of the targets' pixels that the mask loss looks at")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="keep a moving average of the weights, e.g. 0.999")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the network's computation")
    saved_precision: Literal["float32", "float16"] = Field("float32", description="of the weights in OUT/model")
    gradient_checkpointing: bool = Field(False, description="compute twice to save memory")
    compile: bool = Field(False, description="compile the network with torch.compile")

    # Augmentation and sizes; without sizes they follow from the pictures
    augmentation: Literal["paper", "mirror"] = Field(
        "paper", description="resize, crop, distort and flip by the next settings; or mirror every second picture only"
    )
    early_share: float = Field(0.0, ge=0, le=1, description="share of the steps that sees smaller pictures, at first")
    early_size: tuple[int, int] = Field((128, 160), description="height and width those fit in; scenes are drawn so")
    min_sizes: list[int] | None = Field(None, description="shorter edges to choose from; by default from the pictures")
    max_size: int = Field(1333, ge=32, description="largest longer edge")
    crop_size: tuple[int, int] | None = Field(None, description="height and width of random crops")
    crop_kind: Literal["absolute", "absolute_range"] = Field("absolute", description="see data.transforms.RandomCrop")
    single_category_max_area: float = Field(1.0, gt=0, le=1, description="share that a class may fill of a crop")
    distort_colors: bool = Field(False, description="photometric distortion of SSD")
    test_size: int | None = Field(None, ge=32, description="shorter edge after training; by default from the pictures")
    test_max_size: int = Field(1333, ge=32, description="largest longer edge after training")

    # Watching and keeping
    eval_every: int = Field(500, ge=0, description="steps between evaluations; 0: never")
    eval_images: int | None = Field(None, ge=1, description="evaluate on so many images only")
    pictures: int = Field(4, ge=0, description="sample predictions drawn at each evaluation")
    save_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep, besides the best")
    log_every: int = Field(20, ge=1, description="steps between lines of progress")
    trackers: list[str] | None = Field(
        None, description="Accelerate's trackers by name; default tensorboard, if there; none"
    )
    max_bad_steps: int = Field(10, ge=1, description="non-finite steps in a row that end the training")
    workers: int = Field(2, ge=0, description="processes that read data, per training process")
    push_to_hub: str | None = Field(None, description="repository on the hub that the final model is uploaded to")
    private: bool = Field(False, description="whether that repository, if it is new, is private")
    device: Literal["cpu", "cuda"] | None = Field(None, description="by default the GPU if there is one")
    sharded: bool = Field(False, description="share weights and optimizer out to the processes of torchrun (FSDP2)")

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}")
        if self.min_sizes is not None and (not self.min_sizes or min(self.min_sizes) < 1):
            raise ValueError(f"min_sizes is {self.min_sizes}, expected one or more positive sizes")
        low, high = self.crop_size or (1, 1)
        if min(low, high) < 1 or (self.crop_kind == "absolute_range" and low > high):
            wanted = "the least and the largest edge" if self.crop_kind == "absolute_range" else "a height and a width"
            raise ValueError(f"crop_size is {self.crop_size}, expected {wanted} in pixels")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones is {self.milestones}, expected shares of the training between 0 and 1")
        if self.backbone_weights is not None and self.model is not None:
            raise ValueError(f"model {self.model} has a backbone already: give backbone_weights with a network instead")
        return self

    def to_yaml(self) -> str:
        """The settings as a file that `--config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def changes(self, other: TrainingConfig) -> list[str]:
        """Names of the settings in which `other` would compute something else."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)
                and name not in _FREE]  # fmt: skip


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        ValueError: it cannot be read or is no mapping.
    """
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the settings {path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"the settings {path} hold {type(fields).__name__}, expected lines of `name: value`")
    return {str(name): value for name, value in fields.items()}


def build_config(fields: Mapping[str, Any]) -> TrainingConfig:
    """The settings, checked.

    Raises:
        ValueError: one sentence about the first setting that is wrong, unknown or missing.
    """
    try:
        return TrainingConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(TrainingConfig.model_fields)
            raise ValueError(f"there is no setting {name!r}; the settings are {known}") from error
        if first["type"] == "missing":
            raise ValueError(f"train needs {name}: give --{name} or set it in the --config file") from error
        what = f"{name} is {first['input']!r}: " if name else ""
        raise ValueError(f"{what}{first['msg'].removeprefix('Value error, ')}") from error
