"""Sharded over two processes (FSDP2), a training computes, writes and resumes what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskformer import Segmenter
from maskformer.training.trainer import train

from .distributed_worker import SCENARIOS, by_trainer, start, whole_run
from .test_distributed import BASELINE_ROUNDING, assert_same, assert_same_skips
from .tiny import curve, save_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save_tiny(folder / "baseline", "PerPixelBaselinePlus")
    start("tests.training.distributed_worker", checkpoint, str(folder), "sharded")
    return folder


@pytest.fixture(scope="module")
def seen(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def model(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_shards_have_the_gradient_of_one_process(seen, checkpoint, scenario) -> None:
    alone = by_trainer(checkpoint, scenario, 1)
    for process in seen:
        for accumulation in (1, 2):
            assert_same(process["accelerate"][scenario, accumulation], alone)


def test_shards_of_the_per_pixel_baseline(seen, folder) -> None:
    for (scenario, accumulation), found in seen[0]["baseline"].items():
        alone = by_trainer(str(folder / "baseline"), scenario, accumulation, task="semantic")
        assert_same(found, alone, BASELINE_ROUNDING)


def test_accelerates_own_sharding_is_refused(tmp_path, checkpoint, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"ACCELERATE_USE_FSDP is set, .*: start it without, and give --sharded True"):
        train(whole_run(checkpoint, tmp_path / "run"))


def test_each_process_holds_half(seen, folder) -> None:
    count = sum(
        parameter.numel() for parameter in Segmenter.from_pretrained(folder / "whole" / "model").model.parameters()
    )
    assert sum(process["held"] for process in seen) == count
    assert max(process["held"] for process in seen) < 0.6 * count


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_both(seen, checkpoint, accumulation) -> None:
    assert_same_skips([process["skipping"][accumulation] for process in seen], by_trainer(checkpoint, "unequal", 1))


def test_a_sharded_run_is_that_of_one_process(tmp_path, folder, checkpoint) -> None:
    train(whole_run(checkpoint, tmp_path / "one"))
    for ours, alone in zip(curve(folder / "whole"), curve(tmp_path / "one"), strict=True):
        assert ours.keys() == alone.keys()
        assert ours.get("metrics") == pytest.approx(alone.get("metrics"), nan_ok=True)
        assert {k: v for k, v in ours.items() if k != "metrics"} == pytest.approx(
            {k: v for k, v in alone.items() if k != "metrics"}, rel=1e-4
        )
    ours, alone = model(folder / "whole"), model(tmp_path / "one")
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_resuming(folder, checkpoint) -> None:
    whole, again = model(folder / "whole"), model(folder / "again")
    assert curve(folder / "whole") == curve(folder / "again")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    # and by one process, which has no shards
    train(whole_run(checkpoint, folder / "alone"), resume=True)
    for name, value in model(folder / "alone").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-4, msg=name)
