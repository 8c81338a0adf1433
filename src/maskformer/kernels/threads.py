"""Threads for work that calls torch on small blocks: several Python threads with one torch thread each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from threading import Barrier

import torch

# More threads than this wait for Python's lock most of the time: a call to torch holds it for a fifth of its duration.
MAX_THREADS = 8

_num_torch_threads: ContextVar[int | None] = ContextVar("num_torch_threads", default=None)


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Inside, torch's operations stay in the calling thread; `in_threads` uses as many threads as torch did before.

    After each operation torch's own threads wait for the next one without sleeping, on the cores that ours want.
    """
    before = torch.get_num_threads()
    outer = _num_torch_threads.set(_num_torch_threads.get() or before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _num_torch_threads.reset(outer)


def in_threads(work: Callable[[Iterator[int]], None], num_items: int) -> None:
    """Calls `work` in as many threads as torch uses; they share one iterator over the numbers of the items.

    Threads inside torch's operations, instead, meet at the end of every operation: with small blocks that is 100,000
    times a second, and as soon as another process wants a core, they spend their time waiting for each other.

    Raises:
        Exception: the first that `work` raised, after all threads have ended.
    """
    available = _num_torch_threads.get() or torch.get_num_threads()
    numbers = iter(range(num_items))
    if available == 1 or num_items == 0:
        work(numbers)
        return
    pool = _pool(min(available, MAX_THREADS))
    workers = [pool.submit(work, numbers) for _ in range(min(available, num_items, MAX_THREADS))]
    errors = [worker.exception() for worker in workers]  # waits for all
    for error in errors:
        if error is not None:
            raise error


def _stay_alone() -> None:
    torch.get_num_threads()  # a thread takes torch's number over at its first question, which must come before
    torch.set_num_threads(1)


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that stay, because starting one takes milliseconds, and in each of which torch starts no more."""
    before, together = torch.get_num_threads(), Barrier(num_threads + 1)
    pool = ThreadPoolExecutor(num_threads, "maskformer", _stay_alone)
    for _ in range(num_threads):
        pool.submit(together.wait)
    together.wait()  # all are there
    # The setting is that of the calling thread, but also the default of threads born from then on.
    torch.set_num_threads(before)
    if hasattr(os, "register_at_fork"):  # a forked process would have the pool, but not its threads
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return pool
