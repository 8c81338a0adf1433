"""Two processes have the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")
_worker = runpy.run_path(str(WORKER))


@pytest.fixture(scope="module")
def averages(tmp_path_factory: pytest.TempPathFactory):
    """What two processes computed, averaged over them: by scenario, class weights and number of micro-batches."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = ["2", str(folder / "init"), str(folder / "averages.pt")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), *common],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return torch.load(folder / "averages.pt")


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scenario", list(_worker["SCENARIOS"]))
def test_two_processes_equal_one(averages, scenario, weighted, micro_batches):
    counts = _worker["SCENARIOS"][scenario]
    expected = _worker["results"](counts, weighted, micro_batches=1, rank=0, world_size=1)
    # rtol 1e-5 with a floor in proportion to the largest value: sums of gradients may cancel
    for value, same in zip(averages[scenario, weighted, micro_batches], expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-5, atol=1e-6 * max(1.0, same.abs().max().item()))
