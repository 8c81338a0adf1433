"""`maskformer benchmark`: time and memory against transformers, on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from maskformer.cli import UsageError, options


@dataclass(frozen=True)
class Command:
    """Measure the same work with transformers and with this package, each in its own process, in turn."""

    case: Annotated[tuple[str, ...], options.optional(metavar="CASE")] = ()
    """cases to run, by name; by default all of them."""
    against: Literal["transformers"] = "transformers"
    """whom to measure beside this package."""
    device: Literal["cpu", "cuda"] = "cpu"
    """where logits, targets and networks are; on a GPU its memory is measured."""
    rounds: int = 2
    """how often each side is measured; the least time and memory count."""
    seconds: float = 3.0
    """how long short work is repeated within a measurement."""
    out: options.File = None
    """file to write the report to (.json); the table (.md) and a plot (.svg) are written beside it."""
    as_json: options.Json = False
    """print the report as JSON instead of the table."""

    def run(self) -> int:
        if self.rounds < 1 or not self.seconds >= 0:
            raise UsageError("--rounds must be at least 1 and --seconds at least 0")
        import torch

        from maskformer.benchmark.cases import CASES
        from maskformer.benchmark.runner import compare, markdown, plot, report

        unknown = [name for name in self.case if name not in CASES]
        if unknown:
            raise UsageError(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda needs a GPU that torch can use, and there is none; leave the option out")
        found: list[dict[str, Any]] = []
        for case in self.case or CASES:
            found.append(compare(case, self.rounds, self.seconds, self.device))
            ratios = "{speedup:.1f} times faster, {memory_ratio:.1f} times less memory".format(**found[-1])
            print(f"{case}: {ratios}", file=sys.stderr, flush=True)
        document = report(found, self.device)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
            self.out.with_suffix(".md").write_text(markdown(document))
            self.out.with_suffix(".svg").write_text(plot(document))
        print(json.dumps(document) + "\n" if self.as_json else markdown(document), end="")
        return 0
