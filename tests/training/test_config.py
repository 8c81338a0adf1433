"""Settings, recipes, learning rates and parameter groups."""

import math

import pytest
import torch

from maskformer.checkpoints.loading import model_class
from maskformer.checkpoints.zoo import list_zoo
from maskformer.configuration import MaskFormerConfig
from maskformer.training.config import build_config
from maskformer.training.optimizer import parameter_groups, rate_share
from maskformer.training.recipes import find_recipe, resolve

BASE = {"data": "d", "out": "o"}


@pytest.mark.parametrize("entry", list_zoo(), ids=lambda entry: entry["name"])
def test_every_published_configuration_has_its_recipe(entry) -> None:
    config = resolve({**BASE, "recipe": entry["name"]})
    assert (config.steps, config.batch_size, config.learning_rate) == (
        entry["train_iters"],
        entry["batch"],
        entry["lr"],
    )
    assert config.clip_norm == 0.01
    assert config.schedule == ("poly" if entry["schedule"] == "WarmupPolyLR" else "steps")
    if config.schedule == "steps":
        assert [round(share * config.steps) for share in config.milestones] == list(entry["steps"])
    assert config == resolve({**BASE, "recipe": entry["original_config"]})


def test_options_win_over_the_file_and_the_file_over_the_recipe(tmp_path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7\nseed: 3\ncrop_size: null\n")
    config = resolve({**BASE, "recipe": "swin-tiny-ade20k-150", "seed": 4}, file)
    assert (config.steps, config.seed, config.crop_size, config.batch_size) == (7, 4, None, 16)
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert resolve({}, again) == config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": "many"}, "steps is 'many': Input should be a valid integer"),
        ({"steps": None}, "steps is None: Input should be a valid integer"),
        ({"steps": math.inf}, "steps is inf: Input should be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate is inf: Input should be a finite number"),
        ({"class_weights": [1.0, math.nan]}, "class_weights.1 is nan: Input should be a finite number"),
        ({"stepz": 3}, "no setting 'stepz'"),
        ({"steps": 0}, "steps is 0: Input should be greater than or equal to 1"),
        ({"batch_size": 6, "accumulation": 4}, "batch_size 6 is no multiple of accumulation 4"),
        ({"milestones": [300]}, "expected shares"),
        ({"crop_size": (64, 0)}, r"crop_size is \(64, 0\), expected a height and a width in pixels"),
        ({"crop_size": (9, 8), "crop_kind": "absolute_range"}, "expected the least and the largest edge in pixels"),
        ({"out": None}, "out is None"),
    ],
)
def test_wrong_settings_are_named(fields, sentence) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        build_config({**BASE, **fields})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=sentence):
        resolve({**BASE, **fields})


def test_a_window_may_be_higher_than_wide() -> None:
    assert build_config({**BASE, "crop_size": (9, 8)}).crop_size == (9, 8)


def test_a_missing_setting_and_an_unknown_recipe_are_named() -> None:
    with pytest.raises(ValueError, match="train needs out: give --out"):
        build_config({"data": "d"})
    with pytest.raises(ValueError, match="did you mean swin-tiny-ade20k-150"):
        find_recipe("swin-tiny-ade20k")


def test_schedules_are_those_of_detectron2() -> None:
    poly = resolve({**BASE, "recipe": "swin-tiny-ade20k-150"})
    assert rate_share(poly, 0) == pytest.approx(1e-6)
    assert rate_share(poly, 750) == pytest.approx((1e-6 * 0.5 + 0.5) * (1 - 750 / 160000) ** 0.9)
    assert rate_share(poly, 80000) == pytest.approx(0.5**0.9)
    steps = resolve({**BASE, "recipe": "r50-coco-panoptic"})
    assert rate_share(steps, 369_599) == 1.0
    assert rate_share(steps, 369_600) == pytest.approx(0.1)
    short = resolve({**BASE, "recipe": "small", "steps": 20})
    assert short.warm_up_steps == 1  # a short run is not all warm-up


def test_parameter_groups() -> None:
    tiny = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    decoder = {"model_type": "detr", "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
    model = model_class("MaskFormerForInstanceSegmentation")(
        MaskFormerConfig(backbone_config=tiny, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16)
    )
    config = build_config({**BASE, "backbone_multiplier": 0.5, "weight_decay": 0.03, "learning_rate": 1e-3})
    found = {id(p): (g["scale"], g["weight_decay"]) for g in parameter_groups(model, config) for p in g["params"]}
    parameters = dict(model.named_parameters())
    assert set(found) == {id(parameter) for parameter in parameters.values()}
    for name, parameter in parameters.items():
        scale = 0.5 if ".encoder." in name else 1.0
        table = "bias_table" in name or "queries_embedder" in name
        normal = isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm | torch.nn.GroupNorm)
        assert found[id(parameter)] == (scale, 0.0 if table or normal else 0.03), name
