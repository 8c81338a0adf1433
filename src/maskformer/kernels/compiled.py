"""Loops compiled to machine code by numba, an optional dependency; without it, the callers' torch versions go on.

A compiled function takes and fills numpy arrays and runs without Python's lock, in the thread that calls it (see
`maskformer.kernels.threads`). It must not be called without numba, where it would be a slow Python loop: `available`.
It may call compiled functions of its own file alone: numba keeps machine code on the disk until that file changes,
whatever happens in others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

try:
    import numba
except ImportError:  # not installed, or not made for the numpy that is
    numba = None

Function = TypeVar("Function", bound=Callable[..., Any])

available: bool = numba is not None


def compiled(
    function: Function, *, allowed: frozenset[str] = frozenset({"contract"}), inlined: bool = False
) -> Function:
    """`function` as machine code from its first call on, which later processes find on the disk where it is writable.

    A product and a sum may become one operation, which rounds once; nothing else is reordered, so that infinities, NaN
    and the order of sums stay what is written. Loops whose steps are independent are vectorised all the same.
    """
    if numba is None:
        return function
    njit: Any = numba.njit
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(allowed), "forceinline": inlined}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither NUMBA_CACHE_DIR, the package's nor the user's directory can be written to
        return njit(**options)(function)


# For what compiled functions call. Machine code of its own may differ between the process that has compiled it and one
# that has read the caller from the disk, and results in the last digit with it.
inlined = partial(compiled, inlined=True)
# And for loops that add up: sums may be taken in another order, without which they are not vectorised.
inlined_sums = partial(compiled, allowed=frozenset({"contract", "reassoc", "nsz"}), inlined=True)
