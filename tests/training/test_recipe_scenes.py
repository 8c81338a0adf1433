"""The recipe of the bundled model is what it was trained with, and runs."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from maskformer.checkpoints.loading import load_model
from maskformer.data.recognise import open_dataset
from maskformer.data.scenes import draw_scene
from maskformer.training.batches import Order, build_loader
from maskformer.training.network import build_network
from maskformer.training.optimizer import parameter_groups, rate_share
from maskformer.training.recipes import resolve
from maskformer.training.trainer import Trainer, _accelerator, train

from .tiny import curve, save_tiny

QUICK = {"workers": 0, "eval_every": 0, "trackers": ["none"], "device": "cpu"}


def recipe(out, **fields):
    return resolve({"recipe": "scenes", "out": out, **QUICK, **fields})


def test_the_settings_are_those_of_the_bundled_model(tmp_path) -> None:
    config = recipe(tmp_path / "run")
    assert (config.steps, config.batch_size, config.learning_rate, config.clip_norm) == (9000, 8, 5e-4, 5.0)
    assert (config.ema_decay, config.precision, config.saved_precision) == (0.998, "bfloat16", "float16")
    for step in (0, 1, 99, 199, 200, 201, 4500, 8999):
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - 200) / 8800))
        expected = (step + 1) / 200 if step < 200 else cosine
        assert rate_share(config, step) == pytest.approx(expected, rel=1e-4 if step == 199 else 1e-12)
    network, _ = build_network(config, open_dataset("scenes:6"))
    assert sum(weight.numel() for weight in network.parameters()) == sum(
        weight.numel() for weight in load_model("scenes").parameters()
    )
    for group in parameter_groups(network, config):
        assert {weight.ndim > 1 for weight in group["params"]} == {group["weight_decay"] == 0.05}
        assert group["scale"] == 1
    decoder = network.config.decoder_config
    assert (decoder.dropout, decoder.attention_dropout, decoder.activation_dropout) == (0, 0, 0)
    weights = network.config.mask_weight, network.config.dice_weight, network.config.cross_entropy_weight
    assert weights == (20.0, 4.0, 2.0)


def test_every_picture_is_new_and_the_first_ones_are_small(tmp_path) -> None:
    config = recipe(tmp_path / "run", steps=20, batch_size=2, early_share=0.45)
    dataset = open_dataset(config.data)
    trainer = Trainer(config, _accelerator(config), dataset)
    loader = build_loader(dataset, config, trainer._collate(), Order(len(dataset), config))
    for step, batch in enumerate(loader):
        size = (128, 160) if step < 9 else (192, 256)
        for place in range(2):
            scene = draw_scene(seed := 2 * step + place, size)
            image, numbers = (values[:, :: -1 if seed % 2 else 1] for values in (scene.image, scene.segmentation))
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
            mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
            torch.testing.assert_close(batch["pixel_values"][place], (pixels - mean) / deviation, rtol=0, atol=1e-5)
            masks = batch["mask_labels"][place].unpack()
            for mask, segment in zip(masks, scene.segments, strict=True):
                assert torch.equal(mask, torch.from_numpy(numbers[::2, ::2] == segment["id"]))
            assert batch["class_labels"][place].tolist() == [segment["category_id"] for segment in scene.segments]
        assert "valid_mask" not in batch
    assert step == 19


def test_a_picture_is_mirrored_every_other_time(tmp_path) -> None:
    config = recipe(tmp_path / "run", steps=8, batch_size=1, early_share=0)
    dataset = open_dataset("scenes:3")
    draws = build_loader(dataset, config, list, Order(3, config)).dataset
    for draw in range(6):
        expected = dataset[draw % 3].image[:, :: -1 if draw % 2 else 1]
        assert (draws[draw % 3, draw].image == expected).all()


def test_it_trains_and_saves_in_half_precision(tmp_path) -> None:
    train(recipe(tmp_path / "run", steps=2, batch_size=2, early_share=1, early_size=(64, 96), check_images=2))
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float16}
    assert load_model(tmp_path / "run" / "model").state_dict().keys() == load_model("scenes").state_dict().keys()
    rows = curve(tmp_path / "run")
    assert [(row["step"], row["skipped"], math.isfinite(row["loss"])) for row in rows] == [(1, 0, True), (2, 0, True)]


def test_it_goes_on_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch) -> None:
    fields = {"model": save_tiny(tmp_path / "tiny"), "steps": 4, "batch_size": 2, "early_size": (64, 96)}
    fields |= {"check_images": 2, "save_every": 2, "early_share": 0.7}
    train(recipe(tmp_path / "whole", **fields))
    step = Trainer.step

    def interrupted(self, batches):
        row = step(self, batches)
        self.stopping = self.done == 2
        return row

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert train(recipe(tmp_path / "cut", **fields)).step == 2
    assert train(recipe(tmp_path / "cut", **fields), resume=True).model
    whole, cut = ((tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_small_pictures_first_and_a_target_stride_are_for_any_data(tmp_path) -> None:
    config = recipe(
        tmp_path / "run",
        augmentation="paper",
        shuffle=True,
        early_size=(60, 60),
        steps=2,
        batch_size=2,
        target_stride=4,
    )
    dataset = open_dataset("scenes:4")
    trainer = Trainer(config, _accelerator(config), dataset)
    first, second = list(trainer.batches)
    # drawn at 60 x 60, enlarged to a shorter edge of 192, and fitted again
    assert first["pixel_mask"].sum(dim=(1, 2)).tolist() == [3600, 3600]
    assert second["pixel_values"].shape == (2, 3, 192, 256)
    assert second["mask_labels"][0].shape[1:] == (48, 64)
