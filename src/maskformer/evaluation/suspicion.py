"""Results that are too good or too bad to be believed, told in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A trained class head is sure of nearly every query; at its initialisation the entropy is above 90 % of the maximum.
_UNTRAINED_ENTROPY = 80
_NAMES_SHOWN = 8


def suspicions(
    metrics: Mapping[str, float | None],
    per_class: Sequence[Mapping[str, Any]],
    confusion: NDArray[np.int64] | None,
    names: Sequence[str],
    entropy: NDArray[np.float64],
) -> list[str]:
    """Sentences about a result; none if it looks like one.

    Args:
        metrics: the first one is the headline.
        per_class: rows with `name`, `predicted` and the class's number.
        confusion: pixels by (true, predicted) class.
        names: of all classes.
        entropy: sum over queries of the entropy of their classes as a share of the maximum, and their number.
    """
    headline, value = next(iter(metrics.items()))
    found: list[str] = []
    share = 100 * entropy[0] / max(entropy[1], 1)
    if share > _UNTRAINED_ENTROPY:
        found.append(
            f"all classes are about equally likely everywhere (entropy {share:.0f} % of the maximum): the class head "
            "looks untrained; were its weights in the checkpoint?"
        )
    if value is None:
        found.append(f"{headline} does not exist: nothing of the truth counts")
    elif value in (0.0, 100.0):
        found.append(f"{headline} is {value:.0f}: are predictions and truth what they should be?")
    if len(per_class) > 1:
        number = next(name for name in ("IoU", "PQ", "AP") if name in per_class[0])
        for edge in (0.0, 100.0):
            some = [row["name"] for row in per_class if row[number] == edge and (edge or row["predicted"])]
            if some:
                found.append(f"{number} is exactly {edge:.0f} for {_listed(some)}")
    never = [row["name"] for row in per_class if not row["predicted"]]
    if never:
        found.append(f"never predicted, though the data has them: {_listed(never)}")
    if confusion is not None and len(names) > 1 and np.count_nonzero(confusion.sum(0)) == 1:
        found.append(f"every pixel is predicted as {[*names, 'nothing'][int(confusion.sum(0).argmax())]}")
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
