"""The measuring itself: what is counted, how it is written, what is refused."""

import time
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from maskformer.benchmark import runner
from maskformer.benchmark.cases import CASES, measure
from maskformer.benchmark.runner import markdown, plot, run_side
from maskformer.cli import main

DOCUMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "a processor",
    "cores": 2,
    "versions": {"maskformer": "1", "torch": "2", "transformers": "3"},
    "ceilings": {"matmul_float32_gflops": 150.0, "matmul_bfloat16_gflops": 600.0, "copy_gbytes": 10.0},
    "cases": [
        {
            "case": "matcher",
            "peer_seconds": 2.0,
            "seconds": 0.01,
            "peer_bytes": 3e8,
            "bytes": 1e7,
            "speedup": 200.0,
            "memory_ratio": 30.0,
        }
    ],
}


def test_time_is_the_shortest_call_and_memory_the_highest() -> None:
    kept: list[torch.Tensor] = []

    def work() -> None:
        time.sleep(0.02)
        kept[:] = [torch.ones(50_000_000, dtype=torch.uint8)]

    found = measure(work, 0.1)
    assert 0.02 <= found["seconds"] < 0.2
    assert 40e6 < found["bytes"] < 120e6


def test_the_least_of_each_side_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"transformers": [(4.0, 5e8), (3.0, 4e8)], "ours": [(0.5, 2e8), (0.6, 1e8)]}
    asked: list[str] = []

    def run_side(case: str, side: str, seconds: float, device: str) -> dict[str, float]:
        asked.append(side)
        return dict(zip(("seconds", "bytes"), figures[side].pop(0), strict=True))

    monkeypatch.setattr(runner, "run_side", run_side)
    assert runner.compare("x", 2, 0.1) == {
        "case": "x",
        "peer_seconds": 3.0,
        "seconds": 0.5,
        "peer_bytes": 4e8,
        "bytes": 1e8,
        "speedup": 6.0,
        "memory_ratio": 4.0,
    }
    assert asked == ["transformers", "ours"] * 2
    figures.update({"transformers": [(1.0, 4e8)], "ours": [(1.0, 0.0)]})
    assert runner.compare("x", 1, 0.1)["memory_ratio"] == 400


def test_table_and_plot_show_every_case() -> None:
    table = markdown(DOCUMENT)
    assert "| matcher | 2.00 s | 10.0 ms | 200.0 | 300 MB | 10 MB | 30.0 |" in table
    assert "150 GFLOP/s in float32" in table
    drawn = "".join(ElementTree.fromstring(plot(DOCUMENT)).itertext())
    assert "matcher" in drawn
    assert "200.0×" in drawn


def test_a_side_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match=r"the case nonsense failed on the side of ours, which said: KeyError"):
        run_side("nonsense", "ours", 0.1)


def test_unknown_case_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--case", "nonsense"]) == 2
    assert main(["benchmark", "--rounds", "0"]) == 2
    assert main(["benchmark", "--seconds", "-1"]) == 2
    assert "there is no case 'nonsense'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_case_runs_on_both_sides(case: str) -> None:
    for side in ("ours", "transformers"):
        assert run_side(case, side, 0.1)["seconds"] > 0
