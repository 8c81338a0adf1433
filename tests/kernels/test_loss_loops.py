"""Exponential and logarithm of the compiled loops, over their whole range, and what becomes of it at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from maskformer.kernels import compiled
from maskformer.kernels.loss_loops import LARGEST, exp_of_minus, log1p_of_fraction

pytestmark = pytest.mark.skipif(
    not compiled.available, reason="numba is not installed; the compiled loops come with it"
)


@compiled.compiled
def fill(values, function, results):
    for place in range(len(values)):
        results[place] = function(values[place])


def results_of(function, values):
    results = np.empty_like(values)
    fill(values, function, results)
    return results.astype(np.float64)


def test_exp():
    values = np.concatenate([np.linspace(0, LARGEST, 100_001), np.logspace(-30, 1, 1001)]).astype(np.float32)
    expected = np.exp(-values.astype(np.float64))
    np.testing.assert_allclose(results_of(exp_of_minus, values), expected, rtol=2e-7, atol=0)


def test_log():
    values = np.concatenate([np.linspace(0, 1, 100_001), np.logspace(-37, 0, 10_001)]).astype(np.float32)
    expected = np.log1p(values.astype(np.float64))
    np.testing.assert_allclose(results_of(log1p_of_fraction, values), expected, rtol=2e-7, atol=0)


def test_far_values_and_values_that_are_none():
    values = np.array([28, 28.1, 1e4, 1e38, np.inf, np.nan], np.float32)
    results = results_of(exp_of_minus, values)
    np.testing.assert_allclose(results[:-1], np.exp(-28.0), rtol=2e-7)
    assert np.isnan(results[-1])
    assert np.isnan(results_of(log1p_of_fraction, values[-1:])).all()
