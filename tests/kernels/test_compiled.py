"""Compiled functions without numba, and where nothing can be written."""

from __future__ import annotations

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
assert compiled.compiled_sums(len) is len
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
@pytest.mark.parametrize("compile_it", [compiled.compiled, compiled.compiled_sums])
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
