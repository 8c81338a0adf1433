"""Draw the newest committed measurement against transformers: how many times faster, how many times less memory.

python docs/figures/performance.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent.parent
COLORS = {"light": ("#1d2433", "#3b82c4", "#d0d7e5"), "dark": ("#e6e9f0", "#6fb1ea", "#3a4458")}


def draw(report: dict, mode: str) -> None:
    text, bar, grid = COLORS[mode]
    cases = list(reversed(report["cases"]))
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "maskformer"})
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.34 * len(cases) + 1.2), sharey=True, layout="constrained")
    for axis, key, title in zip(axes, ("speedup", "memory_ratio"), ("times faster", "times less memory"), strict=True):
        values = [case[key] for case in cases]
        axis.barh([case["case"] for case in cases], [value - 1 for value in values], left=1, color=bar, height=0.62)
        axis.set_xscale("log")
        axis.set_xlim(0.8, 1.7 * max(values))
        axis.axvline(1, color=text, linewidth=1)
        axis.set_title(title, color=text, fontsize=12)
        for place, value in enumerate(values):
            axis.text(max(value, 1.0) * 1.06, place, f"{value:.1f}", va="center", color=text, fontsize=10)
        ticks = [tick for tick in (1, 3, 10, 30, 100, 300) if tick <= max(values)]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.tick_params(colors=text, length=0, labelsize=10)
        axis.grid(axis="x", color=grid, linewidth=0.8)
        axis.set_axisbelow(True)
        for spine in axis.spines.values():
            spine.set_visible(False)
    out = ROOT / "docs" / "images" / f"performance-{mode}.svg"
    figure.savefig(out, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("2*.json"))
    report = json.loads(newest.read_text(encoding="utf-8"))
    for mode in COLORS:
        draw(report, mode)


if __name__ == "__main__":
    main()
