"""One process, two under torchrun and two under Accelerate have one loss, one gradient, and skip the same steps."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from .distributed_worker import SCENARIOS, by_trainer, start
from .tiny import save_tiny


@pytest.fixture(scope="module")
def seen(tmp_path_factory, checkpoint) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    save_tiny(folder / "baseline", "PerPixelBaselinePlus")
    start("tests.training.distributed_worker", checkpoint, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(one_thread, checkpoint) -> dict[str, dict[str, Tensor]]:
    """One process, one batch of four."""
    return {scenario: by_trainer(checkpoint, scenario, 1) for scenario in SCENARIOS}


# Their gradient is 0 but for rounding: a key's bias moves all scores of a query alike, which softmax does not see, and
# the other shifts a map that a group normalisation follows.
ROUNDING = re.compile(r"(key|k_proj)\.bias$|hidden_states_norms\.[0-2]\.bias$")
# The baseline's classes are its queries: what moves all of them alike is not seen by the softmax over classes.
BASELINE_ROUNDING = re.compile(ROUNDING.pattern + r"|mask_embedder\.2\.0\.bias$")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rounding: re.Pattern[str] = ROUNDING) -> None:
    """In float32, to 1e-5 of the largest entry of each tensor. A tensor of nothing but 0 is that on both sides."""
    largest = max(value.abs().max().item() for name, value in expected.items() if not name.startswith("loss"))
    for name, value in found.items():
        limit = 1e-5 * expected[name].abs().max().item()
        if rounding.search(name):
            assert expected[name].abs().max() <= 1e-7 * largest, name
            limit = 1e-7 * largest
        torch.testing.assert_close(value.to(expected[name]), expected[name], rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_micro_batches_change_nothing(checkpoint, alone, scenario) -> None:
    assert_same(by_trainer(checkpoint, scenario, 2), alone[scenario])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("how", ["torch", "accelerate"])
def test_two_processes_equal_one(seen, alone, how, scenario, accumulation) -> None:
    for process in seen:
        assert process["processes"] == (2, 2, "gloo")
        found = process[how][scenario, accumulation]
        assert found.keys() >= alone[scenario].keys() - {"loss_cross_entropy", "loss_mask", "loss_dice"}
        assert_same(found, alone[scenario])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_per_pixel_baseline_too(tmp_path, seen, scenario) -> None:
    checkpoint = save_tiny(tmp_path / "baseline", "PerPixelBaselinePlus")
    alone = by_trainer(checkpoint, scenario, 1, task="semantic")
    assert_same(by_trainer(checkpoint, scenario, 2, task="semantic"), alone, BASELINE_ROUNDING)
    for process in seen:
        for accumulation in (1, 2):
            assert_same(process["baseline"][scenario, accumulation], alone, BASELINE_ROUNDING)


def test_scenarios_are_what_they_say(alone) -> None:
    assert alone["none at all"]["loss_mask"] == 0 < alone["one process without"]["loss_mask"]
    still = {name for name, value in alone["unequal"].items() if not value.any()}
    # The first layer's queries attend to one another when all are still 0.
    assert all(".decoder.layers.0.self_attn" in name for name in still)


def assert_same_skips(processes: list[dict[str, Any]], alone: dict[str, Tensor]) -> None:
    """Of `distributed_worker.skipping`; `alone` is the gradient of its batch."""
    first, second = processes
    assert first["rows"] == second["rows"]
    assert [row["skipped"] for row in first["rows"]] == [1, 2, 2]
    assert [row["grad_norm"] is None for row in first["rows"]] == [True, True, False]
    assert first["unmoved"]
    assert second["unmoved"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        assert value.isfinite().all(), name
    # Nothing of the skipped steps is left in the next one's gradient.
    assert_same(first["gradients"], alone)
    sentence = "3 steps in a row were not finite, the last is step 6: lower the learning rate"
    assert first["sentence"] == second["sentence"]
    assert first["sentence"].startswith(sentence)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_both(seen, alone, accumulation) -> None:
    assert_same_skips([process["skipping"][accumulation] for process in seen], alone["unequal"])
