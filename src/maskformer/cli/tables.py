"""Tables on stdout: drawn for a reader at a terminal, plain and wide enough for every row where there is none."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskformer.results import Segmentation

_PLAIN_WIDTH = 160


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> None:
    """Print the rows; the columns `left` are flush left, the others right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    is_terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if is_terminal else None, pad_edge=False)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Brackets in the name of a class are no markup.
    Console(width=None if is_terminal else _PLAIN_WIDTH, highlight=False, markup=False).print(table)


def shown(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_segments(result: Segmentation) -> None:
    """The segments as a table on stdout, the largest first."""
    pixels = result.image_size[0] * result.image_size[1]
    rows = [
        [str(each.id), each.label, f"{each.score:.2f}", f"{100 * each.area / pixels:.1f} %", *map(str, each.bbox)]
        for each in sorted(result.segments, key=lambda segment: -segment.area)
    ]
    print_table(["id", "label", "score", "area", "x", "y", "width", "height"], rows, left=(1,))
