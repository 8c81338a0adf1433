"""Settings that are known to work: one recipe per published configuration, one for small own data, one for scenes.

A recipe is a plain dictionary of settings; files and the command line override it (see `resolve`). The numbers of
published recipes are those of the authors' configuration files, which the zoo holds (paper section 4, "Training
settings", and appendix).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskformer.checkpoints.zoo import ZooEntry, find_in_zoo, list_zoo
from maskformer.explanations import explained
from maskformer.training.config import TrainingConfig, build_config, read_settings

Fields = dict[str, Any]

# Settings that are called the same in the zoo.
_SAME_NAMES = (
    *("weight_decay", "weight_decay_norm", "weight_decay_embed", "backbone_multiplier", "poly_power", "gamma"),
    *("deep_supervision", "single_category_max_area"),
)


def small() -> Fields:
    """Own data of some dozens to thousands of pictures, from a checkpoint: half the usual learning rate.

    Shorter than a published training, with a warm-up because the class predictor is new, and with scales and sizes
    taken from the pictures. Clipping at a norm of 0.01 is the paper's: AdamW undoes the scale, so it evens out steps.
    """
    return {"recipe": "small", "model": "scenes", "learning_rate": 5e-5, "warm_up_steps": 100, "distort_colors": True}


def scenes() -> Fields:
    """What the bundled checkpoint is trained with: a small network, from nothing, on scenes that never repeat."""
    return {
        "recipe": "scenes",
        "network": "small",
        "data": "scenes:1000000",
        "shuffle": False,  # step s draws the scenes s * batch_size and on
        "steps": 9000,
        "batch_size": 8,
        "reference_batch": 8,
        "learning_rate": 5e-4,
        "backbone_multiplier": 1.0,
        # matrices decay, vectors do not
        "weight_decay": 0.05,
        "weight_decay_bias": 0.0,
        "weight_decay_embed": 0.05,
        "clip_norm": 5.0,
        "schedule": "cosine",
        "final_share": 0.01,
        "warm_up_steps": 200,
        "warm_up_factor": 0.005,
        "ema_decay": 0.998,
        "precision": "bfloat16",
        "saved_precision": "float16",
        "leave_out_ignored": False,  # there are none
        "target_stride": 2,
        "augmentation": "mirror",
        "early_share": 0.45,
        "min_sizes": [192],
        "test_size": 192,
        "test_max_size": 512,
        "eval_images": 50,
        "eval_every": 1000,
        "check_images": 100,
    }


def published(entry: ZooEntry) -> Fields:
    """The recipe of a published model. `backbone_weights`, from ImageNet in the paper, are the caller's to bring."""
    steps, crop = entry["train_iters"], entry["crop_train"] if entry["crop_enabled"] else None
    return {
        "recipe": entry["name"],
        "network": entry["name"],
        "task": "panoptic" if "panoptic" in entry["dataset_mapper"] else "semantic",
        "steps": steps,
        "batch_size": entry["batch"],
        "reference_batch": entry["batch"],
        "learning_rate": entry["lr"],
        **{name: entry[name] for name in _SAME_NAMES},
        "clip_norm": entry["clip_grad_norm_full_model"],
        "schedule": {"WarmupPolyLR": "poly", "WarmupMultiStepLR": "steps"}[entry["schedule"]],
        "final_share": entry["poly_constant_ending"],
        # A milestone behind the end of the training, as poly configurations carry, is none.
        "milestones": [step / steps for step in entry["steps"] if step < steps],
        "warm_up_steps": entry["warmup_iters"],
        "warm_up_factor": entry["warmup_factor"],
        "leave_out_ignored": False,  # in the authors' loss, ignored pixels are outside of every mask
        "min_sizes": list(entry["min_size_train"]),
        "max_size": entry["max_size_train"],
        "crop_size": None if crop is None else tuple(crop),
        "crop_kind": entry["crop_type"],
        "distort_colors": entry["color_aug_ssd"],
        "test_size": entry["min_size_test"],
        "test_max_size": entry["max_size_test"],
        "eval_every": 5000,
        "save_every": 5000,
    }


RECIPES: dict[str, Callable[[], Fields]] = {"small": small, "scenes": scenes}


def find_recipe(name: str) -> Fields:
    """The settings of a recipe: "small", "scenes", or a published model by its name or the authors' file.

    Raises:
        ValueError: there is none of that name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    entry = find_in_zoo(name)
    if entry is not None:
        return published(entry)
    names = [*RECIPES, *(each["name"] for each in list_zoo())]
    close = difflib.get_close_matches(name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the recipes are {', '.join(names)}"
    raise ValueError(f"there is no recipe {name!r}; {hint}")


@explained
def resolve(
    given: Mapping[str, Any], file: str | Path | None = None, stand_ins: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Settings from the recipe, overridden by the file's, overridden by those given; `stand_ins` where none has one.

    Source: docs/training.md#recipes.

    Raises:
        ValueError: a setting or recipe that is unknown, wrong or missing.

    Examples:
        >>> config = resolve({"data": "pictures", "out": "run", "recipe": "swin-tiny-ade20k-150", "steps": 1000})
        >>> config.learning_rate, config.crop_size, config.steps
        (6e-05, (512, 512), 1000)
    """
    fields = {**(read_settings(file) if file else {}), **given}
    recipe = find_recipe(str(fields.get("recipe", "small")))
    if "network" in fields:
        recipe.pop("model", None)  # who asks for an architecture asks for random weights
    if "steps" in fields and "warm_up_steps" not in fields:
        # a shorter run than the recipe's is not all warm-up
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # told of with the other settings
            share = int(fields["steps"]) / recipe.get("steps", TrainingConfig.model_fields["steps"].default)
            recipe["warm_up_steps"] = round(recipe.get("warm_up_steps", 0) * min(1.0, share))
    return build_config({**(stand_ins or {}), **recipe, **fields, "recipe": recipe["recipe"]})


def small_network() -> Fields:
    """Four million weights: a ResNet-18 of half the width, a pyramid of 64 channels, a decoder of four layers."""
    return {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "decoder_config": {
            "model_type": "detr",
            "d_model": 128,
            "num_queries": 32,
            "decoder_layers": 4,
            "decoder_ffn_dim": 512,
            "decoder_attention_heads": 8,
            "encoder_attention_heads": 8,
            "encoder_layers": 0,
            "dropout": 0.0,
        },
        # Small things weigh little in a mean over pixels; the dice term is what holds their masks.
        "fpn_feature_size": 64,
        "mask_feature_size": 64,
        "mask_weight": 20.0,
        "dice_weight": 4.0,
        "cross_entropy_weight": 2.0,
    }
