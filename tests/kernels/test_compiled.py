"""Compiled functions without numba, and where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from maskformer.kernels import compiled

WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # importing it raises ImportError
import torch
from maskformer.kernels import compiled
from maskformer.losses import MaskFormerHungarianMatcher, MaskFormerLoss
assert not compiled.available
assert compiled.inlined_sums(len) is len
criterion = MaskFormerLoss(3, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, 0.1)
logits = torch.randn(1, 4, 6, 6, requires_grad=True)
losses = criterion(logits, torch.randn(1, 4, 4), [torch.rand(2, 24, 24) > 0.5], [torch.tensor([0, 2])])
sum(losses.values()).backward()
assert logits.grad.count_nonzero() > 0
"""


def test_without_numba():
    subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], check=True)


def total(values):
    result = np.float32(0)
    for value in values:
        result += value
    return result


@pytest.mark.skipif(not compiled.available, reason="numba is not installed")
@pytest.mark.parametrize("compile_it", [compiled.compiled, compiled.inlined_sums])
def test_where_machine_code_cannot_be_kept(monkeypatch, compile_it):
    njit, asked = compiled.numba.njit, []

    def without_disk(*functions, **options):
        if functions:  # numba's own modules, which it loads when it first compiles
            return njit(*functions, **options)
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiled.numba, "njit", without_disk)
    values = np.arange(10, dtype=np.float32)
    assert compile_it(total)(values) == 45
    assert [options.get("cache", False) for options in asked] == [True, False]


BITS = """
import torch
from maskformer.kernels.mask_loss import mask_losses
from maskformer.kernels.matching_cost import matching_costs
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
logits = (3 * torch.randn(8, 17, 23, generator=generator)).requires_grad_()
masks = [torch.rand(8, 67, 91, generator=generator) < 0.4]
for valid in (None, torch.rand(67, 91, generator=generator) < 0.9):
    focal, dice = mask_losses(logits, masks, [torch.arange(8)], None if valid is None else [valid])
    (gradient,) = torch.autograd.grad(focal.sum() + dice.sum(), logits)
    inside = None if valid is None else valid[:17, :23].flatten()
    costs = matching_costs(logits, masks[0][:, :17, :23].flatten(1), inside)
    for values in (focal, dice, gradient, *costs):
        print(values.detach().numpy().tobytes().hex())
"""


@pytest.mark.slow
@pytest.mark.skipif(not compiled.available, reason="numba is not installed")
def test_machine_code_from_the_disk_gives_the_same_bits(tmp_path):
    """What a run computes in the process that compiles the loops is what it computes after `--resume`."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first
    assert first == second
