"""Runs cases on both sides in turn, each time in a fresh process, and writes what came out.

The ratio of one run is what counts: absolute times drift with whatever else the machine does.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


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


def compare(case: str, rounds: int, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """One case, peer, ours, peer, ours, ...: the least time in seconds and the least peak memory in bytes of each side.

    Beside them, how many times faster we are, and with how many times less memory. Ours counts as one megabyte at
    least, below which nothing can be told.
    """
    sides: dict[str, list[dict[str, float]]] = {"transformers": [], "ours": []}
    for _ in range(rounds):
        for side, measured in sides.items():
            measured.append(run_side(case, side, seconds, device))
    peer, ours = (
        {figure: min(each[figure] for each in measured) for figure in ("seconds", "bytes")}
        for measured in sides.values()
    )
    return {
        "case": case,
        "peer_seconds": peer["seconds"],
        "seconds": ours["seconds"],
        "peer_bytes": peer["bytes"],
        "bytes": ours["bytes"],
        "speedup": peer["seconds"] / ours["seconds"],
        "memory_ratio": peer["bytes"] / max(ours["bytes"], 1e6),
    }


def report(cases: list[dict[str, Any]], device: str = "cpu") -> dict[str, Any]:
    """Everything that is needed to read the figures later: date, hardware, versions, ceilings, and the cases."""
    import torch

    cores = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*: (.*)$", cores, re.MULTILINE) or [platform.processor()]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": names[0] if device == "cpu" else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("maskformer", "torch", "transformers")},
        "ceilings": run_side("ceilings", "ours", 1.0, device),
        "cases": cases,
    }


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
    parts: list[str] = []

    def text(x: float, y: int, words: str, style: str = "") -> None:
        parts.append(f'<text x="{x:.0f}" y="{y}"{style}>{words}</text>')

    def bar(x: int, y: int, length: float, colour: str) -> None:
        parts.append(f'<rect x="{x}" y="{y}" width="{length:.0f}" height="12" fill="{colour}"/>')

    text(16, 24, f"Against transformers {peer}", ' font-size="15" font-weight="bold"')
    for place, (_, name, colour) in enumerate(measures):
        bar(left + 140 * place, 36, 12, colour)
        text(left + 140 * place + 18, 46, name)
    for decade in range(decades + 1):
        x = left + unit * decade
        parts.append(f'<line x1="{x:.0f}" y1="{top - 6}" x2="{x:.0f}" y2="{bottom + 4}" stroke="#ddd"/>')
        text(x, bottom + 20, f"{10**decade}×", ' text-anchor="middle" fill="#666"')
    for number, each in enumerate(cases):
        y = top + row * number
        text(left - 10, y + 18, each["case"], ' text-anchor="end"')
        for place, (key, _, colour) in enumerate(measures):
            # What is slower or larger than the peer's has no bar: its number tells.
            length = max(1.0, unit * math.log10(max(1.0, each[key])))
            bar(left, y + 13 * place, length, colour)
            text(left + length + 5, y + 13 * place + 10, f"{each[key]:.1f}×", ' font-size="11"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 32}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"
    )
