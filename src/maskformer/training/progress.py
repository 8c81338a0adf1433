"""What a training says: a line of progress on stderr, a file of every step, and the trackers of Accelerate.

RUN/log.jsonl has an object per step (`step`, `loss`, the terms, `lr`, `grad_norm`, `skipped`), in full precision, and
one per evaluation (`step`, `metrics`). A continued run drops the lines behind its checkpoint, and damaged ones, first.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from maskformer.checkpoints.writing import written_whole
from maskformer.training.config import TrainingConfig


class RunLog:
    """Tells and records the steps of a run; on other processes than the first it does nothing.

    Args:
        accelerator: whose trackers are told.
        config: the settings.
        first_step: steps that are done already.
    """

    def __init__(self, accelerator: Any, config: TrainingConfig, first_step: int) -> None:
        self.accelerator, self.config, self.is_first = accelerator, config, accelerator.is_main_process
        self.path = config.out / "log.jsonl"
        self._since, self._clock = first_step, time.perf_counter()
        console = Console(stderr=True)
        columns = (BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, disable=not (self.is_first and console.is_terminal))
        self._task = self._bar.add_task("starting", total=config.steps, completed=first_step)
        if self.is_first:
            kept = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            lines = [line.decode() for line in kept if line.endswith(b"\n") and _step_of(line) <= first_step]
            with written_whole(self.path) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")
            self._bar.start()

    def tell(self, sentence: str) -> None:
        """A line on stderr."""
        if self.is_first:
            self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def step(self, row: dict[str, Any]) -> None:
        """A step is done."""
        if not self.is_first:
            return
        self._record(row)
        self._bar.update(self._task, completed=row["step"])
        if row["step"] % self.config.log_every and row["step"] != self.config.steps:
            return
        now = time.perf_counter()
        speed = (row["step"] - self._since) * self.config.batch_size / max(now - self._clock, 1e-9)
        left = (self.config.steps - row["step"]) * self.config.batch_size / max(speed, 1e-9)
        self._since, self._clock = row["step"], now
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        self.accelerator.log({**values, "images_per_second": speed, "memory_mb": memory_mb()}, step=row["step"])
        terms = " ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in values.items())
        line = f"{terms} {speed:.1f} images/s {memory_mb():.0f} MB"
        self._bar.update(self._task, description=line)
        if not self._bar.console.is_terminal:
            print(f"step {row['step']}/{self.config.steps} {line} {left:.0f} s left", file=sys.stderr, flush=True)

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """An evaluation is done."""
        if not self.is_first:
            return
        self._record({"step": step, "metrics": metrics})
        numbers = {f"eval/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if isinstance(value, float))
        self.tell(f"step {step}: {shown or 'nothing to count'}")

    def _record(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def pictures(self, step: int, dataset: Any, segmenter: Any) -> None:
        """What the model sees in the first images, as PNG files and to the trackers that take pictures."""
        if not self.is_first:
            return
        images = [dataset[index].image for index in range(min(self.config.pictures, len(dataset)))]
        for number, (image, result) in enumerate(zip(images, segmenter.stream(images, dataset.task), strict=True)):
            picture = result.overlay(image)
            path = self.config.out / "pictures" / f"step-{step:08}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
            for tracker in self.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    pixels = np.asarray(picture.convert("RGB"))[None]  # [1, H, W, 3]
                    extra = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({f"prediction/{number}": pixels}, step=step, **extra)

    def close(self) -> None:
        """Ends the line and the file."""
        if self.is_first:
            self._bar.stop()
            self._file.close()


def _step_of(line: bytes) -> float:
    """Infinite where the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")


def memory_mb() -> float:
    """The most memory used so far, of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def default_trackers(config: TrainingConfig) -> list[str]:
    """The trackers asked for; by default TensorBoard, if it is installed.

    Raises:
        ValueError: Accelerate does not know one, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if config.trackers is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    if config.trackers == ["none"]:
        return []
    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in config.trackers:
        if name not in there:
            known = name in LOGGER_TYPE_TO_CLASS
            remedy = f"install it: pip install {name}" if known else f"installed are {', '.join(sorted(there)) or '-'}"
            raise ValueError(f"there is no tracker {name!r} here; {remedy}")
    return list(config.trackers)


def prepare_directory(out: Path, resume: bool) -> None:
    """Refuses to write over another run.

    Raises:
        ValueError: `out` is a file or holds a run already, or nothing to resume.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a directory for the run")
    if resume and not (out / "config.yaml").is_file():
        raise ValueError(f"{out} holds no run to resume: start it without --resume")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: continue its run with --resume, or give another --out")
