"""One process of the tests with two: steps of the trainer (Accelerate) and of a loop in plain torch.

torchrun --nproc-per-node 2 -m tests.training.distributed_worker CHECKPOINT FOLDER [sharded]    # in the repository

FOLDER/baseline holds a per-pixel baseline. Every process writes what it saw to FOLDER/RANK.pt.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from maskformer import load_model
from maskformer.data.collate import Collate
from maskformer.data.sample import Sample
from maskformer.data.scene_set import SceneDataset
from maskformer.data.scenes import LABELS
from maskformer.training.batches import Order, build_loader
from maskformer.training.config import TrainingConfig
from maskformer.training.trainer import Trainer, _accelerator, train

from .tiny import settings

# Targets of the four samples of a step. Process 0 takes the first half, of the whole step or of each micro-batch.
SCENARIOS = {"unequal": (5, 1, 3, 2), "one process without": (4, 2, 0, 0), "none at all": (0, 0, 0, 0)}
OPTIONS = {"steps": 4, "batch_size": 4, "min_sizes": [64], "clip_norm": 0.0, "class_weights": [1.0 + i for i in LABELS]}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Counted(SceneDataset):
    """Four scenes, of which the n-th that is drawn keeps `counts[n]` targets; the others' pixels are background."""

    def __init__(self, config: TrainingConfig, counts: tuple[int, ...]) -> None:
        super().__init__(4, size=(64, 96), task=config.task)
        places = next(iter(Order(4, config.model_copy(update={"accumulation": 1}))))
        self.counts = {index: count for (index, _), count in zip(places, counts, strict=True)}

    def read(self, index: int) -> Sample:
        sample, count = super().read(index), self.counts[index]
        assert len(sample.regions) >= count, "else the scenario is another"
        planes = sample.planes * (sample.planes <= count)
        return Sample(sample.image, planes, sample.regions[:count], path=sample.path)


def build(checkpoint: str, scenario: str, accumulation: int, **fields: Any) -> Trainer:
    out = fields.pop("out", Path("unused"))
    config = settings(out, checkpoint, **{**OPTIONS, "accumulation": accumulation, **fields})
    return Trainer(config, _accelerator(config), Counted(config, SCENARIOS[scenario]))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in trainer.network.named_parameters()}
    return {name: getattr(value, "full_tensor", value.clone)() for name, value in found.items()}


def by_trainer(checkpoint: str, scenario: str, accumulation: int, **fields: Any) -> dict[str, Tensor]:
    """Loss, its terms and all gradients of a step of the trainer."""
    trainer = build(checkpoint, scenario, accumulation, **fields)
    row = trainer.step([next(trainer.batches) for _ in range(accumulation)])
    values = {name: torch.tensor(value) for name, value in row.items() if name.startswith("loss")}
    return {**values, **gradients(trainer)}


def by_plain_torch(checkpoint: str, scenario: str, accumulation: int) -> dict[str, Tensor]:
    """The same by what the network and its criterion offer to anybody's loop, without Accelerate."""
    config = settings(Path("unused"), checkpoint, **{**OPTIONS, "accumulation": accumulation})
    network = load_model(checkpoint, class_weights=OPTIONS["class_weights"], use_auxiliary_loss=True).train()
    model = DistributedDataParallel(network)
    order = Order(4, config, 0, distributed.get_rank(), distributed.get_world_size())
    loader = iter(build_loader(Counted(config, SCENARIOS[scenario]), config, Collate(with_valid_mask=True), order))
    batches = [next(loader) for _ in range(accumulation)]
    labels = [image for batch in batches for image in batch["class_labels"]]
    normalizer = network.criterion.compute_normalizer(labels, network.config.decoder_config.num_queries)
    total = torch.zeros(())
    for place, batch in enumerate(batches):
        with contextlib.nullcontext() if place == accumulation - 1 else model.no_sync():
            loss = model(**batch, normalizer=normalizer).loss
            loss.backward()
        total += loss.detach()
    distributed.all_reduce(total)
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    return {"loss": total / distributed.get_world_size(), **found}


@contextlib.contextmanager
def spoiled(trainer: Trainer, micro_batch: int, prediction: bool) -> Iterator[None]:
    """Within, in one micro-batch of every step of process 1 the predictions are not finite, or the gradient alone."""
    good, calls = trainer.objective.loss, iter(range(1000))

    def loss(model: Any, batch: Any, *rest: Any) -> Any:
        if trainer.accelerator.process_index == 0 or next(calls) % trainer.config.accumulation != micro_batch:
            return good(model, batch, *rest)
        if prediction:
            return good(model, {**batch, "pixel_values": batch["pixel_values"] * float("nan")}, *rest)
        value = good(model, batch, *rest)
        value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    trainer.objective.loss = loss
    try:
        yield
    finally:
        trainer.objective.loss = good


def skipping(checkpoint: str, accumulation: int, folder: Path, **fields: Any) -> dict[str, Any]:
    """Steps that are not finite on process 1 alone, a good one, and then nothing but bad ones until the end."""
    limit = {"max_bad_steps": 3, "ema_decay": 0.9, "steps": 20, "out": folder / f"run{accumulation}"}
    trainer = build(checkpoint, "unequal", accumulation, **limit, **fields)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    batches = [next(trainer.batches) for _ in range(accumulation)]
    with spoiled(trainer, accumulation - 1, prediction=True):
        rows = [trainer.step(batches)]
    with spoiled(trainer, accumulation - 1, prediction=False):
        rows.append(trainer.step(batches))
    unmoved = all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    rows.append(trainer.step(batches))
    seen = {"rows": rows, "unmoved": unmoved, "gradients": gradients(trainer), "weights": weights(trainer)}
    with spoiled(trainer, 0, prediction=True):
        try:
            trainer.run()
        except FloatingPointError as error:
            seen["sentence"] = str(error)
    assert all(torch.equal(value, seen["weights"][name]) for name, value in weights(trainer).items())
    return seen


def whole_run(checkpoint: str, out: Path, **fields: Any) -> TrainingConfig:
    """A training with all that a checkpoint has to keep, and gradients that are clipped."""
    options = {"steps": 6, "save_every": 3, "keep": 9, "batch_size": 4, "min_sizes": [64], "clip_norm": 1.0}
    watched = {"ema_decay": 0.9, "eval_every": 6, "eval_images": 3, "pictures": 1}
    return settings(out, checkpoint, **{**options, **watched, **fields})


def interrupted(checkpoint: str, folder: Path) -> None:
    """A sharded training, and the same after its third step had been its last: FOLDER/whole, again and alone."""
    train(whole_run(checkpoint, folder / "whole", sharded=True))
    if distributed.get_rank() == 0:
        for name in ("again", "alone"):
            shutil.copytree(folder / "whole", folder / name, ignore=shutil.ignore_patterns("*6", "model", "best"))
    distributed.barrier()
    train(whole_run(checkpoint, folder / "again", sharded=True), resume=True)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    found = {**trainer.network.state_dict(), **{f"mean {k}": v for k, v in (trainer.average.values.items())}}
    return {name: getattr(value, "full_tensor", value.clone)() for name, value in found.items()}


def equality(how: Callable[..., Any], checkpoint: str, **fields: Any) -> dict[tuple[str, int], Any]:
    return {(name, parts): how(checkpoint, name, parts, **fields) for name in SCENARIOS for parts in (1, 2)}


def main(checkpoint: str, folder: Path, *words: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(500.0, exit=True)  # rather than wait for ever
    fields = dict.fromkeys(words, True)
    seen: dict[str, Any] = {}
    if not fields:
        distributed.init_process_group("gloo")
        seen["torch"] = equality(by_plain_torch, checkpoint)
        assert "accelerate" not in sys.modules or not sys.modules["accelerate"].PartialState._shared_state
    seen["accelerate"] = equality(by_trainer, checkpoint, **fields)
    pixels = {"task": "semantic", **fields}
    seen["baseline"] = equality(by_trainer, str(folder / "baseline"), **pixels)
    seen["skipping"] = {parts: skipping(checkpoint, parts, folder, **fields) for parts in (1, 2)}
    trainer = build(checkpoint, "unequal", 1, **fields)
    accelerator = trainer.accelerator
    seen["processes"] = (accelerator.num_processes, distributed.get_world_size(), distributed.get_backend())
    if fields:
        seen["held"] = sum(parameter.to_local().numel() for parameter in trainer.learnt)
        interrupted(checkpoint, folder)
    torch.save(seen, folder / f"{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


def start(module: str, *words: str, timeout: float = 540.0) -> None:
    """Two processes by torchrun; waits for their end.

    `accelerate launch --cpu --num_processes 2` would start one: Accelerate takes the processes that torchrun started.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    done = subprocess.run(
        [*command, *words],
        env=ENVIRONMENT,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
