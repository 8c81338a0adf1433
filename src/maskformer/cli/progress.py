"""The progress bar on stderr, drawn where somebody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(text: str, is_first: bool = True) -> Iterator[Callable[[int, int], None]]:
    """What to call with (done, all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Results must reach a redirected stdout untouched; on a terminal they have to go above the bar.
    both = sys.stdout.isatty() and console.is_terminal
    silent = not (is_first and console.is_terminal)
    with Progress(*columns, console=console, transient=True, redirect_stdout=both, disable=silent) as progress:
        bar = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
