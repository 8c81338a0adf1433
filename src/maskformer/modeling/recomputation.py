"""Gradient checkpointing: what a part of a module computes is not kept, but computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn


class Recomputing(nn.Module):
    """A module that recomputes its parts once transformers has switched that on."""

    # Both set by PreTrainedModel, on every module that has the first.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor] | None = None

    def run(self, part: nn.Module, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and self._gradient_checkpointing_func is not None:
            return self._gradient_checkpointing_func(_run_once_tracked(part), *inputs)
        return part(*inputs)


def _run_once_tracked(part: nn.Module) -> Callable[..., Tensor]:
    """The part as a function whose repetition leaves running statistics alone.

    Otherwise one training step would count its batch twice, and checkpointing would change the trained model.
    """
    ran = False

    def run(*inputs: Any) -> Tensor:
        nonlocal ran
        with _kept_statistics(part) if ran else nullcontext():
            ran = True
            return part(*inputs)

    return run


@contextmanager
def _kept_statistics(module: nn.Module) -> Generator[None]:
    """Batch normalisation inside uses the batch's statistics, as in training, but the running ones stay as they are."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d | nn.SyncBatchNorm)]
    norms = [norm for norm in norms if norm.num_batches_tracked is not None]  # None: it keeps no statistics
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count
