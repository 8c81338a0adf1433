"""Requests that arrive together are worked on together: a bounded house, a queue and one thread in one process.

A batch is formed when the worker is free, of the oldest request and those alike; a request that is cancelled leaves.
Both are why this is not one of the batching libraries, see docs/decisions.md. Across processes Ray Serve does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class HouseFull(Exception):
    """As many requests as there may be are inside."""


class House:
    """Counts the requests inside: being received, waiting, being worked on, or being answered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """One request's stay; HouseFull if there is no room."""
        if self.inside >= self.most:
            raise HouseFull
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    likeness: Hashable
    arrived: float
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Hands batches to `work`, in a thread, one at a time.

    Args:
        work: gives each item's result, or the exception that is its answer, in their order.
        max_batch: items per call, at most.
        max_delay: seconds the oldest item waits for others while the worker is free.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        max_batch: int,
        max_delay: float,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._work, self._max_batch, self._max_delay, self._on_batch = work, max_batch, max_delay, on_batch
        self._waiting: list[_Entry[Item, Result]] = []
        self._arrived = asyncio.Event()
        self._seconds_each = 0.1  # of late, per item

    @property
    def num_waiting(self) -> int:
        """Items that no thread works on yet."""
        return len(self._waiting)

    def seconds_until_room(self, inside: int) -> int:
        """When about a quarter of `inside` requests will have been answered; 1 to 60."""
        return min(max(math.ceil(self._seconds_each * inside / 4), 1), 60)

    async def submit(self, item: Item, likeness: Hashable = None) -> Result:
        """The result of an item, in a batch of those with the same `likeness`; cancelling takes it out of the queue."""
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(item, likeness, loop.time(), loop.create_future())
        self._waiting.append(entry)
        self._arrived.set()
        try:
            return await entry.answer
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def run(self) -> None:
        """Work until cancelled; the batch in hand is then finished but not answered."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "segmenting") as thread:
            while True:
                batch = await self._next_batch()
                started = time.perf_counter()
                try:
                    results = await loop.run_in_executor(thread, self._work, [entry.item for entry in batch])
                except Exception as error:
                    results = [error] * len(batch)
                seconds = time.perf_counter() - started
                self._seconds_each += (seconds / len(batch) - self._seconds_each) / 4
                self._on_batch(len(batch))
                for entry, result in zip(batch, results, strict=True):
                    if entry.answer.done():  # cancelled meanwhile
                        continue
                    if isinstance(result, Exception):
                        entry.answer.set_exception(result)
                    else:
                        entry.answer.set_result(result)

    async def _next_batch(self) -> list[_Entry[Item, Result]]:
        loop = asyncio.get_running_loop()
        while True:
            remaining = None
            if self._waiting:
                oldest = self._waiting[0]
                alike = [entry for entry in self._waiting if entry.likeness == oldest.likeness][: self._max_batch]
                remaining = oldest.arrived + self._max_delay - loop.time()
                if len(alike) == self._max_batch or remaining <= 0:
                    self._waiting = [entry for entry in self._waiting if entry not in alike]
                    return alike
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), remaining)
