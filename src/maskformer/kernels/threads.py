"""Threads for work that calls torch on small blocks: several Python threads with one torch thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["in_threads"]

# More threads than this wait for Python's lock most of the time: a call to torch holds it for a fifth of its duration.
MAX_THREADS = 8


def in_threads(work: Callable[[Iterator[int]], None], num_items: int) -> None:
    """Calls `work` in as many threads as torch uses; they share one iterator over the numbers of the items.

    Threads inside torch's operations, instead, meet at the end of every operation: with small blocks that is 100,000
    times a second, and as soon as another process wants a core, they spend their time waiting for each other.

    Raises:
        Exception: the first that `work` raised, after all threads have ended.
    """
    before = torch.get_num_threads()
    numbers = iter(range(num_items))
    if before == 1 or num_items == 0:
        work(numbers)
        return
    num_threads = min(before, num_items, MAX_THREADS)
    try:
        # A thread of ours must keep torch from starting more threads inside it. The setting is that of the calling
        # thread, but also the default of threads born from then on, which is why it is set back.
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for worker in [pool.submit(work, numbers) for _ in range(num_threads)]:
                worker.result()
    finally:
        torch.set_num_threads(before)
