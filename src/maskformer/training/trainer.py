"""The training loop on Accelerate: one process or many, and a continuation that equals an uninterrupted run bit by bit.

Everything random follows from the seed and the number of the step or sample, so that a checkpoint needs weights,
optimizer and counters alone. H W image.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.checkpoints.writing import written_whole
from maskformer.data.check import refuse_wrong_data
from maskformer.data.collate import Collate
from maskformer.data.dataset import SegmentationDataset
from maskformer.data.recognise import open_dataset
from maskformer.evaluation.evaluate import evaluate
from maskformer.evaluation.loop import Options
from maskformer.explanations import explained
from maskformer.inference import Segmenter
from maskformer.training.average import AveragedWeights
from maskformer.training.batches import Order, PixelCollate, build_loader, check_val_set, fit_sizes, open_evaluation_set
from maskformer.training.checkpointing import latest_checkpoint, read_state, save_checkpoint
from maskformer.training.config import TrainingConfig, build_config, read_settings
from maskformer.training.model_card import build_card, check_hub, push
from maskformer.training.network import build_network, build_processor, is_per_pixel, set_learning
from maskformer.training.objective import Batch, build_objective
from maskformer.training.optimizer import build_optimizer, rate_line, set_rate
from maskformer.training.progress import RunLog, default_trackers, prepare_directory
from maskformer.training.sharding import restore_optimizer, shard, unsharded, whole


@dataclass(frozen=True)
class Outcome:
    """How a training ended: after `step` of `steps`, `model` the directory to use (None if interrupted), the last
    evaluation's metrics in percent, and the steps that were skipped because they were not finite."""

    step: int
    steps: int
    model: Path | None
    metrics: dict[str, Any]
    skipped: int


@explained
def train(config: TrainingConfig, resume: bool = False) -> Outcome:
    """Train, from the start or from the latest checkpoint of `config.out`.

    Under torchrun every process calls this.

    Source: arXiv 2107.06278, section 4.1 (training settings); docs/training.md.

    Raises:
        ValueError: settings or data that are wrong; nothing has been written then.
        FloatingPointError: too many non-finite steps in a row.
        ImportError: Accelerate is not installed.

    Examples:
        >>> from maskformer.training.recipes import resolve
        >>> settings = {"steps": 1, "batch_size": 1, "eval_every": 0, "workers": 0, "trackers": [], "device": "cpu"}
        >>> outcome = train(resolve({"data": "scenes:2", "out": "run", **settings}))
        >>> Path("run/model/config.json").is_file()
        True
    """
    accelerator = _accelerator(config)
    with _all_or_none():
        prepare_directory(config.out, resume)
        if accelerator.is_main_process:
            check_hub(config)
    dataset = open_dataset(config.data, config.split, config.format, config.task)
    if resume:
        return Trainer(fit_sizes(_continued(config), dataset), accelerator, dataset, resume).run()
    with _all_or_none():
        report = refuse_wrong_data(dataset, config.check_images)
        check_val_set(config, dataset)
    trainer = Trainer(fit_sizes(config, dataset), accelerator, dataset)
    notes = [finding.message for finding in report.findings[:5]]
    if report.most_targets > (queries := trainer.network.config.decoder_config.num_queries):
        notes.append(f"an image has {report.most_targets} targets but the network {queries} queries")
    return trainer.run([f"note: {note}" for note in notes])


def _continued(config: TrainingConfig) -> TrainingConfig:
    """The settings of a run that is resumed, with the sizes that it found."""
    before = build_config(read_settings(config.out / "config.yaml"))
    config = config.model_copy(update={"min_sizes": before.min_sizes, "test_size": before.test_size})
    changed = before.changes(config)
    if changed:
        name = changed[0]
        raise ValueError(
            f"{name} was {getattr(before, name)} and is now {getattr(config, name)}: a run is resumed with the "
            "settings it was started with; leave the option out, or start another run"
        )
    return config


class Trainer:
    """One training. Build it, then `run`.

    Args:
        config: the settings, sizes included.
        accelerator: Accelerate's, without mixed precision or accumulation of its own.
        dataset: what to train on.
        resume: go on from the latest checkpoint, if there is one.
    """

    def __init__(
        self, config: TrainingConfig, accelerator: Any, dataset: SegmentationDataset, resume: bool = False
    ) -> None:
        self.config, self.accelerator, self.dataset = config, accelerator, dataset
        latest = latest_checkpoint(config.out) if resume else None
        first = config if latest is None else config.model_copy(update={"model": str(latest)})
        self.processor = build_processor(first, dataset)
        self.network, self.told = build_network(first, dataset)
        set_learning(self.network, config)  # of the run, whatever checkpoint it goes on from
        self.network.to(accelerator.device)
        if config.compile:
            getattr(self.network, "model", self.network).compile()
        self.objective = build_objective(self.network, accelerator)
        self.sharded = config.sharded and accelerator.num_processes > 1
        if self.sharded:
            shard(self.network, accelerator.device)
            self.model, self.optimizer = self.network, build_optimizer(self.network, config)
        else:
            self.model, self.optimizer = accelerator.prepare(self.network, build_optimizer(self.network, config))
        self.learnt = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.average = AveragedWeights(self.network, config.ema_decay) if config.ema_decay else None
        self.evaluation_set = open_evaluation_set(config)
        self.done, self.skipped, self.bad_in_a_row, self.best = 0, 0, 0, -math.inf
        self.metrics: dict[str, Any] = {}
        self.stopping = self._told_to_stop = False
        if latest is not None:
            self._restore(read_state(latest))
        order = Order(len(dataset), config, self.done, accelerator.process_index, accelerator.num_processes)
        self.batches = iter(build_loader(dataset, config, self._collate(), order))

    def run(self, notes: Sequence[str] = ()) -> Outcome:
        """Train to the end, or until SIGTERM or Ctrl-C, which save and return; `notes` are told first."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            # whole: a full disk must not take it from a resumed run
            with written_whole(config.out / "config.yaml") as partial:
                partial.write_text(config.to_yaml(), encoding="utf-8")
        accelerator.wait_for_everyone()
        if accelerator.log_with:
            accelerator.init_trackers("tracking", config={k: str(v) for k, v in config.model_dump().items()})
        log = RunLog(accelerator, config, self.done)
        try:
            count = accelerator.num_processes
            place = f"computing on {accelerator.device}" + (f", one of {count} processes" if count > 1 else "")
            for sentence in [*notes, *self.told, place, rate_line(config)]:
                log.tell(sentence)
            with self._stopped_by_signals():
                while self.done < config.steps and not self.stopping:
                    self._advance(log)
            model = None
            if self.done < config.steps:
                log.tell(f"stopped after step {self.done} of {config.steps}; --resume goes on")
            else:
                model = config.out / "model"
                self._export(model, config.saved_precision == "float16")
                log.tell(f"done: {model}")
                if config.push_to_hub and accelerator.is_main_process:
                    log.tell(push(config, model))
            return Outcome(self.done, config.steps, model, self.metrics, self.skipped)
        finally:
            log.close()
            if accelerator.log_with:
                accelerator.end_training()

    def _advance(self, log: RunLog) -> None:
        config = self.config
        batches = [next(self.batches) for _ in range(config.accumulation)]
        try:
            row = self.step(batches)
        except RuntimeError as error:
            if not config.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            log.tell(self._stop_compiling(error))
            row = self.step(batches)
        log.step(row)
        if self.bad_in_a_row >= config.max_bad_steps:
            raise FloatingPointError(
                f"{self.bad_in_a_row} steps in a row were not finite, the last is step {self.done}: lower the learning "
                "rate, or train in float32; the last checkpoint is from before"
            )
        is_last = self.done == config.steps
        if config.eval_every and (self.done % config.eval_every == 0 or is_last):
            self.evaluate(log)
        # A step that was not finite is no state to continue from, unless it is asked for.
        if self.done % config.save_every == 0 or is_last or self.stopping:
            self.save()

    def step(self, batches: list[Batch]) -> dict[str, Any]:
        """One step of the optimizer on the micro-batches of this process; the row for the log.

        A step that is not finite on any process is skipped on all.
        """
        # Dropout follows from the step, so that a continued run draws what it would have drawn.
        torch.manual_seed((self.config.seed * 1_000_003 + self.done) * 4096 + self.accelerator.process_index)
        rate = set_rate(self.optimizer, self.config, self.done)
        self.optimizer.zero_grad(set_to_none=True)
        values = self._gradients(batches)
        limit = self.config.clip_norm or math.inf
        norm = math.nan if values is None else float(whole(torch.nn.utils.clip_grad_norm_(self.learnt, limit)))
        good = math.isfinite(norm)
        if good:
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.skipped += not good
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
        self.done += 1
        shown = {name: value for name, value in (values or {}).items() if math.isfinite(value)}
        # JSON knows no NaN
        return {"step": self.done, **shown, "lr": rate, "grad_norm": norm if good else None, "skipped": self.skipped}

    def _gradients(self, batches: list[Batch]) -> dict[str, float] | None:
        """Adds up the gradients of all micro-batches; the batch's loss and terms, or None if they are not finite."""
        divisor: Any = self.objective.divisor(batches)
        names = ("loss", *self.objective.names)
        totals = torch.zeros(len(names), dtype=torch.float64, device=self.accelerator.device)
        for place, batch in enumerate(batches):
            is_last = place == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch, divisor)
                if self._anywhere(not bool(torch.isfinite(loss))):
                    return None  # nobody goes backward, so nobody waits for another's gradients
                self.accelerator.backward(loss)
            totals += torch.stack([loss.detach(), *self.objective.terms.values()]).to(totals)
        return dict(zip(names, self.accelerator.reduce(totals, "mean").tolist(), strict=True))

    def _loss(self, batch: Batch, divisor: Any) -> Tensor:
        from accelerate.utils import send_to_device

        device = self.accelerator.device
        moved: Any = send_to_device(batch, device, non_blocking=True, skip_keys="pixel_mask")  # which nobody reads
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                return self.objective.loss(self.model, moved, divisor)
        except FloatingPointError:
            return torch.tensor(math.nan)

    def _anywhere(self, bad: bool) -> bool:
        """Whether any process says so; in passing, whether any was told to stop, so that all stop after one step."""
        flags = torch.tensor([bad, self._told_to_stop], dtype=torch.int32, device=self.accelerator.device)
        anywhere, self.stopping = (count > 0 for count in self.accelerator.reduce(flags, "sum").tolist())
        return anywhere

    def _stop_compiling(self, error: RuntimeError) -> str:
        """Goes on without torch.compile, which changes rounding alone; says so."""
        # "backend=... raised:" comes before what is of interest
        reason = next((line for line in str(error).splitlines() if line and not line.endswith(":")), str(error))
        if self.accelerator.num_processes > 1:  # the others may be waiting for what this one does not send
            raise ValueError(f"torch.compile failed here ({reason}): train without --compile") from error
        getattr(self.network, "model", self.network)._compiled_call_impl = None  # undoes `compile`
        return f"torch.compile failed here ({reason}): going on without it, slower but the same"

    def evaluate(self, log: RunLog) -> None:
        """Evaluates (with the averaged weights, if there are some), draws samples, and keeps the best model."""
        if self.evaluation_set is None:
            return
        task: Any = self.evaluation_set.task
        with self._network_to_use() as network:
            segmenter = Segmenter(network, self.processor, task)
            result = evaluate(segmenter, self.evaluation_set, task, Options(limit=self.config.eval_images))
            log.pictures(self.done, self.evaluation_set, segmenter)
        set_learning(self.network, self.config)
        self.metrics = dict(result.metrics)
        log.evaluation(self.done, self.metrics)
        first = next(iter(self.metrics.values()), None)
        if first is not None and first > self.best:
            self.best = float(first)
            self._export(self.config.out / "best")

    def save(self) -> None:
        """Writes a checkpoint to continue from."""
        state = {
            "step": self.done,
            "optimizer": whole(self.optimizer.state_dict()),
            "average": None if self.average is None else whole(self.average.state_dict()),
            "counters": [self.skipped, self.bad_in_a_row],
            "best": self.best,
            "metrics": self.metrics,
        }
        network = unsharded(self.network, self.network.state_dict()) if self.sharded else self.network
        if self.accelerator.is_main_process:
            save_checkpoint(self.config, self.done, lambda path: self._write(path, network), state)
        self.accelerator.wait_for_everyone()

    def _restore(self, state: dict[str, Any]) -> None:
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.done, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.skipped, self.bad_in_a_row = state["counters"]
        self.told = [f"going on after step {self.done} of {self.config.steps}"]

    def _export(self, path: Path, in_half: bool = False) -> None:
        """Writes the model to be used."""
        with self._network_to_use() as network:
            if self.accelerator.is_main_process:
                with written_whole(path) as partial:
                    self._write(partial, copy.deepcopy(network).half() if in_half else network)
                    build_card(self.config, self.dataset, self.metrics, self.done).save(partial / "README.md")
        self.accelerator.wait_for_everyone()

    def _write(self, path: Path, network: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar per file, in the middle of ours
            network.save_pretrained(path)
        self.processor.save_pretrained(path)

    @contextlib.contextmanager
    def _network_to_use(self) -> Iterator[Any]:
        """The whole network, with the averaged weights where there are some."""
        if self.sharded:
            yield unsharded(self.network, self.average.values if self.average else self.network.state_dict())
        else:
            with self.average.applied() if self.average else contextlib.nullcontext():
                yield self.network

    def _collate(self) -> Any:
        config, processor = self.config, self.processor.to_dict()
        mean, std = (np.broadcast_to(processor[name], 3).tolist() for name in ("image_mean", "image_std"))
        # Crops of one size make batches of one size, whatever the pictures.
        size = config.crop_size if config.crop_kind == "absolute" else None
        stride, without_ignored = config.target_stride, config.leave_out_ignored
        collate = Collate(tuple(mean), tuple(std), size, 32, without_ignored, packed=True, target_stride=stride)
        return PixelCollate(collate, processor["ignore_index"]) if is_per_pixel(self.network) else collate

    @contextlib.contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop after the step; a second one ends at once."""
        before: dict[int, Any] = {}

        def stop(number: int, _frame: Any) -> None:
            self._told_to_stop = True
            signal.signal(number, before[number])

        with contextlib.suppress(ValueError):  # not in the main thread: somebody else takes the signals
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _accelerator(config: TrainingConfig) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("training needs Accelerate: pip install 'maskformer[train]'") from error
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "false").lower() == "true":
            raise ValueError(f"{name} is set, but training shards by itself: start it without, and give --sharded True")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU: install torch for CUDA, or leave --device out")
    # The loop counts micro-batches, seeds and casts itself, whatever `accelerate launch` has set.
    options: dict[str, Any] = {"mixed_precision": "no", "gradient_accumulation_steps": 1}
    options |= {"log_with": default_trackers(config) or None, "project_dir": str(config.out)}
    return Accelerator(cpu=config.device == "cpu" or not torch.cuda.is_available(), **options)


@contextlib.contextmanager
def _all_or_none() -> Iterator[None]:
    """Runs the block everywhere; an error of any process is an error of all, so that none is left waiting."""
    from accelerate.utils import gather_object

    error: ValueError | None = None
    try:
        yield
    except ValueError as caught:
        error = caught
    sentences: list[str] = gather_object([str(error)] if error else [])
    if sentences:
        raise ValueError(sentences[0]) from error
