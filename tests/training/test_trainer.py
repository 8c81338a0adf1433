"""The loop: processes and micro-batches change nothing, interruptions change nothing, and what is wrong is refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch._inductor.exc import InvalidCxxCompiler

from maskformer import MaskFormerImageProcessor, Segmenter, load_model
from maskformer.data.recognise import open_dataset
from maskformer.data.scenes import LABELS, STUFF_IDS
from maskformer.training.average import AveragedWeights
from maskformer.training.batches import Order, build_loader
from maskformer.training.checkpointing import latest_checkpoint, read_state, save_checkpoint
from maskformer.training.network import build_network
from maskformer.training.trainer import Trainer, _accelerator, train

from .tiny import HalfEmpty, curve, save_tiny, settings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_run(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_samples_are_the_same_for_any_number_of_processes(checkpoint) -> None:
    config = settings(Path("o"), checkpoint, batch_size=4, steps=5)
    alone = [sorted(batch) for batch in Order(6, config)]
    shared = [sorted([*a, *b]) for a, b in zip(Order(6, config, 0, 0, 2), Order(6, config, 0, 1, 2), strict=True)]
    assert alone == shared
    assert list(Order(6, config, 3)) == list(Order(6, config))[3:]
    drawn = [index for batch in alone for index, _ in batch]
    assert sorted(drawn[:4] + [i for i, n in alone[1] if n < 6]) == list(range(6))  # each image once per epoch
    single = settings(Path("o"), checkpoint, batch_size=1, steps=12)
    first, second = np.reshape([index for ((index, _),) in Order(6, single)], (2, 6)).tolist()
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second  # each epoch has an order of its own
    with pytest.raises(ValueError, match="make it a multiple of 3"):
        Order(6, config, 0, 0, 3)


def test_killed_and_resumed_equals_uninterrupted(tmp_path, checkpoint) -> None:
    dropping = save_tiny(tmp_path / "dropping", dropout=0.2)
    options = {"steps": 24, "ema_decay": 0.9, "workers": 1}
    train(settings(tmp_path / "whole", dropping, **options))
    killed = settings(tmp_path / "killed", dropping, **options)
    (tmp_path / "settings.yaml").write_text(killed.to_yaml())
    words = [sys.executable, "-m", "maskformer", "train", "--config", str(tmp_path / "settings.yaml")]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "killed" / "log.jsonl", time.time() + 60
    while not (log.exists() and log.read_text().count("\n") >= 8):
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert 8 <= len(curve(tmp_path / "killed")) < 24
    assert not (tmp_path / "killed" / "model").exists()
    train(killed, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_signal_saves_and_ends(tmp_path, checkpoint, monkeypatch) -> None:
    train(settings(tmp_path / "whole", checkpoint))
    stopped = settings(tmp_path / "stopped", checkpoint)
    step = Trainer.step

    def interrupted(self, batches):
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    outcome = train(stopped)
    assert (outcome.step, outcome.model) == (4, None)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(Trainer, "step", step)
    assert train(stopped, resume=True).model is not None
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_signal_to_all_processes_does_not_take_the_workers_away(tmp_path, checkpoint, monkeypatch) -> None:
    train(settings(tmp_path / "whole", checkpoint))
    step = Trainer.step

    def interrupted(self, batches):
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        if self.done == 1:
            for pid in (*(worker.pid for worker in workers), os.getpid()):
                os.kill(pid, signal.SIGTERM)
            for worker in workers:
                worker.join(0.1)
                os.kill(worker.pid, signal.SIGINT)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    stopped = settings(tmp_path / "stopped", checkpoint, workers=2)
    assert train(stopped).step == 2
    assert not multiprocessing.active_children()
    monkeypatch.setattr(Trainer, "step", step)
    train(stopped, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_full_disk_does_not_take_the_run_away(tmp_path, checkpoint, monkeypatch) -> None:
    config = settings(tmp_path / "run", checkpoint, steps=2)
    train(config)
    before = [(config.out / name).read_text() for name in ("config.yaml", "log.jsonl")]
    write_text = Path.write_text
    for full in ("config.yaml", "log.jsonl"):

        def write(path, *text, full=full, **rest):
            if path.name.startswith(full):
                path.write_bytes(b"")  # the old content is gone before there is no room for the new
                raise OSError(28, "No space left on device")
            return write_text(path, *text, **rest)

        monkeypatch.setattr(Path, "write_text", write)
        with pytest.raises(OSError, match="No space left"):
            train(config, resume=True)
        monkeypatch.undo()
        assert [(config.out / name).read_text() for name in ("config.yaml", "log.jsonl")] == before


def test_resuming_needs_a_run_and_the_same_settings(tmp_path, checkpoint) -> None:
    config = settings(tmp_path / "run", checkpoint, steps=2)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(config, resume=True)
    train(config)
    with pytest.raises(ValueError, match="is not empty: continue its run with --resume"):
        train(config)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001 and is now 0\.1"):
        train(config.model_copy(update={"learning_rate": 0.1}), resume=True)


def test_the_result_is_a_checkpoint_here_and_in_transformers(tmp_path, checkpoint) -> None:
    import transformers

    out = tmp_path / "run"
    outcome = train(
        settings(out, checkpoint, steps=4, eval_every=2, eval_images=2, pictures=1, class_weights=[2.0] * 14)
    )
    assert outcome.metrics["PQ"] == curve(out)[-1]["metrics"]["PQ"]
    assert len(list((out / "pictures").glob("*.png"))) == 2
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    assert MaskFormerImageProcessor.from_pretrained(out / "best").label_ids_to_fuse == STUFF_IDS
    segmenter = Segmenter.from_pretrained(out / "model", device="cpu")
    assert (segmenter.task, segmenter.labels) == ("panoptic", LABELS)
    theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(out / "model").eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, other = segmenter.model(pixel_values), theirs(pixel_values)
    torch.testing.assert_close(ours.class_queries_logits, other.class_queries_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.masks_queries_logits, other.masks_queries_logits, rtol=1e-4, atol=1e-4)


def test_evaluations_in_between_change_nothing(tmp_path) -> None:
    model = save_tiny(tmp_path / "dropping", dropout=0.2)
    for name, every in (("plain", 0), ("evaluated", 1)):
        train(settings(tmp_path / name, model, steps=3, eval_every=every, eval_images=1, pictures=0))
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "evaluated"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_classes_start_anew_where_they_do_not_fit(tmp_path, capsys) -> None:
    five = save_tiny(tmp_path / "five", labels=dict(enumerate("abcde")))
    train(settings(tmp_path / "run", five, steps=1, learning_rate=1e-12))
    told = capsys.readouterr().err
    assert "14 classes instead of 5: started anew are class_predictor.bias, class_predictor.weight; all else" in told
    before, after = load_model(five).state_dict(), load_model(tmp_path / "run" / "model").state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"class_predictor.bias", "class_predictor.weight", "criterion.empty_weight"} & before.keys()
    for name in before.keys() - changed:
        torch.testing.assert_close(before[name], after[name], msg=name)


@pytest.mark.parametrize(
    ("architecture", "anew"),
    [
        ("MaskFormerForInstanceSegmentation", {"class_predictor.weight", "class_predictor.bias"}),
        ("PerPixelBaseline", {"predictor.weight", "predictor.bias"}),
        ("PerPixelBaselinePlus", {"model.transformer_module.queries_embedder.weight"}),
    ],
)
def test_only_what_depends_on_the_classes_starts_anew(tmp_path, architecture, anew) -> None:
    five = save_tiny(tmp_path / "five", architecture, dict(enumerate("abcde")))
    config = settings(tmp_path / "run", five, task="semantic")
    model, told = build_network(config, open_dataset("scenes:2", task="semantic"))
    assert told[1] == f"14 classes instead of 5: started anew are {', '.join(sorted(anew))}; all else is kept"
    before = load_file(Path(five) / "model.safetensors")
    for name, value in model.state_dict().items():
        assert (name in anew) == (name in before and value.shape != before[name].shape)
        assert name in anew or torch.equal(value, before[name]), name


@pytest.mark.parametrize("architecture", ["PerPixelBaseline", "PerPixelBaselinePlus"])
def test_per_pixel_baselines_train(tmp_path, architecture) -> None:
    model = save_tiny(tmp_path / "model", architecture, dict(enumerate("abc")))
    for accumulation in (1, 2):
        options = {"accumulation": accumulation, "class_weights": np.linspace(0.1, 2, len(LABELS)).tolist()}
        config = settings(tmp_path / f"{accumulation}", model, task="semantic", min_sizes=[64], **options)
        assert train(config).skipped == 0
    one, two = (curve(tmp_path / name) for name in "12")
    np.testing.assert_allclose([row["loss"] for row in one], [row["loss"] for row in two], rtol=1e-3)
    assert one[0]["grad_norm"] > 0
    with pytest.raises(ValueError, match="semantic segmentation only"):
        train(settings(tmp_path / "panoptic", model))


def test_a_per_pixel_baseline_learns_class_255_where_there_is_one(tmp_path) -> None:
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    (tmp_path / "data" / "classes.txt").write_text("\n".join(f"number {number}" for number in range(300)))
    Image.new("RGB", (64, 64), (90, 120, 60)).save(tmp_path / "data" / "images" / "a.png")
    values = np.full((64, 64), 255, np.uint16)
    values[:8] = 65535  # ignored
    Image.fromarray(values).save(tmp_path / "data" / "labels" / "a.png")
    model = save_tiny(tmp_path / "model", "PerPixelBaseline", dict(enumerate("abc")))
    data = {"data": str(tmp_path / "data"), "min_sizes": [64], "batch_size": 1, "steps": 8}
    train(settings(tmp_path / "run", model, **data))
    losses = [row["loss"] for row in curve(tmp_path / "run")]
    assert losses[0] == pytest.approx(np.log(300), rel=0.3)
    assert losses[-1] < losses[0]
    assert MaskFormerImageProcessor.from_pretrained(tmp_path / "run" / "model").ignore_index == 65535


def test_where_nothing_can_be_compiled_it_goes_on_without(tmp_path, checkpoint, monkeypatch, capsys) -> None:
    train(settings(tmp_path / "plain", checkpoint, steps=2))

    def without_compiler(*args, **kwargs):
        raise InvalidCxxCompiler

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", without_compiler)
    )
    assert train(settings(tmp_path / "compiled", checkpoint, steps=2, compile=True)).skipped == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("torch.compile failed here")]
    assert len(told) == 1
    assert "No working C++ compiler found" in told[0]
    assert told[0].endswith("going on without it, slower but the same")
    assert_same_run(tmp_path / "plain", tmp_path / "compiled")


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, checkpoint, monkeypatch) -> None:
    config = settings(tmp_path / "run", checkpoint, max_bad_steps=2)
    trainer = Trainer(config, _accelerator(config), open_dataset("scenes:6"))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    good = trainer.objective.loss
    monkeypatch.setattr(trainer.objective, "loss", lambda *args: good(*args) * float("nan"))
    assert trainer.step([next(trainer.batches)])["skipped"] == 1
    assert all(torch.equal(before[name], value) for name, value in trainer.network.state_dict().items())
    monkeypatch.setattr(trainer.objective, "loss", good)
    assert trainer.step([next(trainer.batches)])["skipped"] == 1
    assert trainer.bad_in_a_row == 0

    def explode(*args):
        raise FloatingPointError

    monkeypatch.setattr(trainer.objective, "loss", explode)
    with pytest.raises(FloatingPointError, match="2 steps in a row were not finite, the last is step 4"):
        trainer.run()


def test_options_that_change_how_it_is_computed(tmp_path, checkpoint) -> None:
    plain = settings(tmp_path / "plain", checkpoint, steps=2)
    train(plain)
    train(settings(tmp_path / "twice", checkpoint, steps=2, gradient_checkpointing=True))
    assert [row["loss"] for row in curve(tmp_path / "plain")] == pytest.approx(
        [row["loss"] for row in curve(tmp_path / "twice")], rel=1e-5
    )
    train(settings(tmp_path / "half", checkpoint, steps=2, precision="bfloat16"))
    assert curve(tmp_path / "half")[0]["loss"] == pytest.approx(curve(tmp_path / "plain")[0]["loss"], rel=0.05)
    train(settings(tmp_path / "frozen", checkpoint, steps=2, freeze_backbone=True))
    first, last = load_model(checkpoint).state_dict(), load_model(tmp_path / "frozen" / "model").state_dict()
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved
    assert not [name for name in moved if "pixel_level_module.encoder" in name]


@pytest.mark.parametrize("fields", [{}, {"freeze_backbone": True, "model": None, "network": "small"}])
def test_a_backbone_that_is_there_already_keeps_its_statistics(tmp_path, fields) -> None:
    config = settings(tmp_path / "run", **{"model": "scenes", "steps": 2, "eval_every": 1, "pictures": 0, **fields})
    network, _ = build_network(config, open_dataset("scenes:4", "train"))
    before = {name: value.clone() for name, value in network.state_dict().items() if "running_" in name}
    assert before
    train(config)
    after = load_model(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_backbone_from_nothing_learns_its_statistics(tmp_path) -> None:
    train(settings(tmp_path / "run", None, steps=2, network="small"))
    after = load_model(tmp_path / "run" / "model").state_dict()
    assert all(value.abs().max() > 0 for name, value in after.items() if "encoder" in name and "running_mean" in name)


def test_a_gpu_that_is_not_there_is_told(tmp_path, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is cuda, but torch sees no GPU"):
        train(settings(tmp_path / "run", checkpoint, device="cuda"))
    assert not (tmp_path / "run").exists()


def test_workers_draw_what_the_process_would(checkpoint) -> None:
    batches = []
    for workers in (0, 2):
        config = settings(Path("o"), checkpoint, steps=3, workers=workers)
        trainer = Trainer(config, _accelerator(config), HalfEmpty(config.model_copy(update={"batch_size": 4})))
        batches.append(list(build_loader(trainer.dataset, config, trainer._collate(), Order(4, config))))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"])


def test_average() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = AveragedWeights(layer, 0.5)
    for _ in range(30):
        torch.nn.init.ones_(layer.weight)
        average.update()
    assert 0.9 < average.values["weight"].item() <= 1
    average.values["weight"].fill_(7)
    with average.applied():
        assert layer.weight.item() == 7
    assert layer.weight.item() == 1


def test_the_newest_whole_checkpoints_are_kept(tmp_path, checkpoint) -> None:
    config = settings(tmp_path, checkpoint, keep=2)
    for step in (9, 10, 11, 12):
        save_checkpoint(config, step, lambda path: path.mkdir(), {"step": step})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000011", "step-00000012"]
    # killed before its last file was on the disk for certain
    (tmp_path / "checkpoints" / "step-00000012").rename(tmp_path / "checkpoints" / "step-00000012.partial")
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert read_state(latest) == {"step": 11}


def test_counters_are_copied_into_the_average() -> None:
    layer = torch.nn.BatchNorm1d(2)
    average = AveragedWeights(layer, 0.5)
    for _ in range(3):
        layer(torch.randn(4, 2))
        average.update()
    assert average.values["num_batches_tracked"].item() == 3


def test_a_damaged_checkpoint_is_told_wherever_it_is_damaged(tmp_path, checkpoint) -> None:
    config = settings(tmp_path, checkpoint)
    save_checkpoint(config, 1, lambda path: path.mkdir(), {"step": 1, "average": {"values": torch.zeros(9)}})
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    state = newest / "training.pt"
    whole = state.read_bytes()
    assert read_state(newest)["step"] == 1
    in_pickle = whole.index(b"average")
    for damaged in (b"", whole[:1], whole[:-9], whole[:in_pickle] + b"\xff" + whole[in_pickle + 1 :]):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"step-00000001 is damaged: remove it and resume from the one before"):
            read_state(newest)
