"""Runs cases on both sides in turn, each time in a fresh process, and writes what came out.

The ratio of one run is what counts: absolute times drift with whatever else the machine does.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """One case: the shortest time in seconds and the peak memory in bytes above the start, of either side."""

    case: str
    peer_seconds: float
    seconds: float
    peer_bytes: float
    bytes: float

    @property
    def speedup(self) -> float:
        """The peer's time over ours."""
        return self.peer_seconds / self.seconds

    @property
    def memory_ratio(self) -> float:
        """The peer's memory over ours; ours counts as one megabyte at least, below which nothing can be told."""
        return self.peer_bytes / max(self.bytes, 1e6)


def run_side(case: str, side: str, seconds: float, device: str = "cpu") -> dict[str, float]:
    """One side of one case in its own process.

    Raises:
        ValueError: the process failed; the message ends in what it said.
    """
    command = [sys.executable, "-W", "ignore", "-m", "maskformer.benchmark.cases", case, side, str(seconds), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise ValueError(f"the case {case} failed on the side of {side}, which said: {last[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(
    cases: Sequence[str], rounds: int, seconds: float, tell: Callable[[Comparison], None], device: str = "cpu"
) -> list[Comparison]:
    """Peer, ours, peer, ours, ...: the least time and the least peak of each side over the rounds."""
    found: list[Comparison] = []
    for case in cases:
        sides: dict[str, list[dict[str, float]]] = {"transformers": [], "ours": []}
        for _ in range(rounds):
            for side, measured in sides.items():
                measured.append(run_side(case, side, seconds, device))
        best = {
            (side, figure): min(each[figure] for each in measured)
            for side, measured in sides.items()
            for figure in ("seconds", "bytes")
        }
        found.append(
            Comparison(
                case,
                best["transformers", "seconds"],
                best["ours", "seconds"],
                best["transformers", "bytes"],
                best["ours", "bytes"],
            )
        )
        tell(found[-1])
    return found


def report(comparisons: Sequence[Comparison], device: str = "cpu") -> dict[str, Any]:
    """Everything that is needed to read the figures later: date, hardware, versions, ceilings, cases with ratios."""
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor if device == "cpu" else _gpu(),
        "cores": len([line for line in _lines("/proc/cpuinfo") if line.startswith("processor")]),
        "versions": {name: version(name) for name in ("maskformer", "torch", "transformers")},
        "ceilings": run_side("ceilings", "ours", 1.0, device),
        "cases": [{**asdict(each), "speedup": each.speedup, "memory_ratio": each.memory_ratio} for each in comparisons],
    }


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def markdown(document: dict[str, Any]) -> str:
    """The report as a table for people."""
    machine = f"{document['date']}, {document['processor']}, {document['cores']} cores, " + ", ".join(
        f"{name} {number}" for name, number in document["versions"].items()
    )
    ceilings = document["ceilings"]
    lines = [
        machine,
        "",
        f"Ceilings in the same run: matmul {ceilings['matmul_float32_gflops']:.0f} GFLOP/s in float32 and "
        f"{ceilings['matmul_bfloat16_gflops']:.0f} in bfloat16, copy {ceilings['copy_gbytes']:.1f} GB/s.",
        "",
        "| case | transformers | ours | times faster | transformers, memory | ours, memory | times less |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each['case']} | {_time(each['peer_seconds'])} | {_time(each['seconds'])} | {each['speedup']:.1f} | "
        f"{each['peer_bytes'] / 1e6:.0f} MB | {each['bytes'] / 1e6:.0f} MB | {each['memory_ratio']:.1f} |"
        for each in document["cases"]
    ]
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def plot(document: dict[str, Any]) -> str:
    """Two bars for each case, how many times faster and with how many times less memory, on a logarithmic axis: SVG."""
    row, left, top, width = 34, 170, 64, 720
    cases, peer = document["cases"], document["versions"]["transformers"]
    measures = (("speedup", "times faster", "#3b6fb6"), ("memory_ratio", "times less memory", "#b9c6d8"))
    most = max(max(1.0, each[key]) for each in cases for key, _, _ in measures)
    decades = max(1, math.ceil(math.log10(most)))
    unit, bottom = (width - left - 60) / decades, top + row * len(cases)
    parts = [f'<text x="16" y="24" font-size="15" font-weight="bold">Against transformers {peer}</text>']
    for place, (_, name, colour) in enumerate(measures):
        x = left + 140 * place
        parts.append(
            f'<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="46">{name}</text>'
        )
    for decade in range(decades + 1):
        x = left + unit * decade
        parts.append(f'<line x1="{x:.0f}" y1="{top - 6}" x2="{x:.0f}" y2="{bottom + 4}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{bottom + 20}" text-anchor="middle" fill="#666">{10**decade}×</text>')
    for number, each in enumerate(cases):
        y = top + row * number
        parts.append(f'<text x="{left - 10}" y="{y + 18}" text-anchor="end">{each["case"]}</text>')
        for place, (key, _, colour) in enumerate(measures):
            # What is slower or larger than the peer's has no bar: its number tells.
            end = left + max(1.0, unit * math.log10(max(1.0, each[key])))
            parts.append(
                f'<rect x="{left}" y="{y + 13 * place}" width="{end - left:.0f}" height="12" fill="{colour}"/>'
            )
            label = f"{each[key]:.1f}×"
            parts.append(f'<text x="{end + 5:.0f}" y="{y + 13 * place + 10}" font-size="11">{label}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 32}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"
    )
