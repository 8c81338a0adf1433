"""`maskformer benchmark`: time and memory against transformers, on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    case: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CASE")] = (),
    against: Literal["transformers"] = "transformers",
    device: Literal["cpu", "cuda"] = "cpu",
    rounds: int = 2,
    seconds: float = 3.0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Measure the same work with transformers and with this package, each in its own process, in turn.

    Args:
        case: cases to run, by name; by default all of them.
        against: whom to measure beside this package.
        device: where logits, targets and networks are; on a GPU its memory is measured.
        rounds: how often each side is measured; the least time and memory count.
        seconds: how long short work is repeated within a measurement.
        out: file to write the report to (.json); the table (.md) and a plot (.svg) are written beside it.
        as_json: print the report as JSON instead of the table.
    """
    from maskformer.benchmark.cases import CASES
    from maskformer.benchmark.runner import Comparison, compare, markdown, plot, report
    from maskformer.cli import UsageError

    unknown = [name for name in case if name not in CASES]
    if unknown:
        raise UsageError(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")

    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda needs a GPU that torch can use, and there is none; leave the option out")

    def tell(found: Comparison) -> None:
        print(
            f"{found.case}: {found.speedup:.1f} times faster, {found.memory_ratio:.1f} times less memory",
            file=sys.stderr,
            flush=True,
        )

    document = report(compare(case or tuple(CASES), rounds, seconds, tell, device), device)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        out.with_suffix(".md").write_text(markdown(document))
        out.with_suffix(".svg").write_text(plot(document))
    print(json.dumps(document) if as_json else markdown(document), end="\n" if as_json else "")
    return 0
