"""Which section of the documentation explains a refusal: a note on the error, and the end of the CLI's sentence."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# By the module an error is raised in; the longest name that fits counts.
SECTIONS = {
    "maskformer.benchmark": "performance.md",
    "maskformer.checkpoints": "messages.md#checkpoints",
    "maskformer.cli": "index.md",
    "maskformer.cli.train": "training.md",
    "maskformer.configuration": "messages.md#configuration",
    "maskformer.data": "messages.md#data",
    "maskformer.data.classes": "data.md#a-class-list",
    "maskformer.evaluation": "messages.md#metrics",
    "maskformer.evaluation.protocol": "evaluation.md#protocols",
    "maskformer.export": "messages.md#export",
    "maskformer.inference": "messages.md#results",
    "maskformer.kernels": "messages.md#targets",
    "maskformer.losses": "messages.md#targets",
    "maskformer.losses.matcher": "messages.md#predictions",
    "maskformer.modeling": "architecture.md",
    "maskformer.modeling.backbones": "messages.md#backbones",
    "maskformer.modeling.maskformer": "messages.md#targets",
    "maskformer.processing": "messages.md#settings-of-the-processor",
    "maskformer.processing.loading": "messages.md#pictures",
    "maskformer.processing.masks": "messages.md#segmentation-maps",
    "maskformer.processing.postprocessing": "messages.md#results",
    "maskformer.processing.preprocessing": "messages.md#segmentation-maps",
    "maskformer.results": "messages.md#results",
    "maskformer.serving": "deployment.md",
    "maskformer.tiling": "deployment.md#large-pictures",
    "maskformer.training": "messages.md#training",
    "maskformer.visualization": "messages.md#results",
}


def pages() -> Path:
    """Where docs/ is: in the installed package, or in the clone."""
    installed = Path(__file__).parent / "docs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "docs"


def section_of(error: BaseException) -> str | None:
    """Where the error's reason is explained, as a path from the root of the project; None if it is not ours."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in modules if name.startswith("maskformer.") and name not in (__name__, "maskformer.cli")]
    found = ours[-1] if ours else ""
    while found:
        if found in SECTIONS:
            return f"docs/{SECTIONS[found]}"
        found = found.rpartition(".")[0]
    return None


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """A public function whose ValueErrors say, in a note below them, where their reason is explained."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            section = section_of(error)
            if section and not getattr(error, "__notes__", None):
                error.add_note(f"Explained in {section}")
            raise

    return call
