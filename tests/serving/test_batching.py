"""The house and the queue: what goes together, who leaves, what fails alone."""

import asyncio
import threading
import time

import pytest

from maskformer.serving.batching import Batcher, House, HouseFull

from .conftest import limited


async def served(batcher, *requests):
    """The answers of requests that arrive while the first batch is in hand."""
    running = asyncio.create_task(batcher.run())
    try:
        return await asyncio.gather(*requests, return_exceptions=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def doubled(seen, seconds=0.0):
    def work(items):
        seen.append(list(items))
        time.sleep(seconds)
        return [ValueError(f"not {item}") if item < 0 else 2 * item for item in items]

    return work


def test_what_waits_while_the_worker_is_busy_becomes_one_batch() -> None:
    seen = []

    async def main():
        batcher = Batcher(doubled(seen, 0.1), max_batch=4, max_delay=0)

        async def later(number):
            await asyncio.sleep(0.01 * number)  # one by one, each after the last would have gone alone
            return await batcher.submit(number)

        return await served(batcher, *(later(number) for number in range(6)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10]
    assert seen == [[0], [1, 2, 3, 4], [5]]


def test_a_free_worker_waits_for_company_for_max_delay_only() -> None:
    seen, batches = [], []

    async def main():
        batcher = Batcher(doubled(seen), 2, 0.15, batches.append)

        async def late():
            await asyncio.sleep(0.05)
            return await batcher.submit(2)

        started = time.perf_counter()
        answers = await served(batcher, batcher.submit(1), late())
        full = time.perf_counter() - started
        started = time.perf_counter()
        answers += await served(batcher, batcher.submit(3))
        return answers, full, time.perf_counter() - started

    answers, full, alone = asyncio.run(main())
    assert answers == [2, 4, 6]
    assert batches == [2, 1]
    assert full < 0.14  # not longer than until it was full
    assert alone >= 0.14


def test_only_those_alike_go_together_and_the_oldest_goes_first() -> None:
    seen = []

    async def main():
        batcher = Batcher(doubled(seen), max_batch=8, max_delay=0.01)
        kinds = ["wide", "high", "wide", "high"]
        return await served(batcher, *(batcher.submit(number, kind) for number, kind in enumerate(kinds)))

    assert asyncio.run(main()) == [0, 2, 4, 6]
    assert seen == [[0, 2], [1, 3]]


def test_a_cancelled_request_leaves_the_queue() -> None:
    seen = []

    async def main():
        batcher = Batcher(doubled(seen, 0.1), max_batch=8, max_delay=0)
        first = asyncio.create_task(served(batcher, batcher.submit(1), batcher.submit(2)))
        await asyncio.sleep(0.05)
        third, fourth = (asyncio.create_task(batcher.submit(number)) for number in (3, 4))
        await asyncio.sleep(0)
        assert batcher.num_waiting == 2
        third.cancel()
        await asyncio.sleep(0)
        assert batcher.num_waiting == 1
        fourth.cancel()
        await first

    asyncio.run(main())
    assert seen == [[1, 2]]


def test_a_client_that_leaves_during_the_work_does_not_disturb_the_others() -> None:
    async def main():
        batcher = Batcher(doubled([], 0.1), max_batch=8, max_delay=0)
        running = asyncio.create_task(batcher.run())
        leaving, staying = (asyncio.create_task(batcher.submit(number)) for number in (1, 2))
        await asyncio.sleep(0.05)
        leaving.cancel()
        assert await staying == 4
        assert await batcher.submit(5) == 10
        running.cancel()

    asyncio.run(main())


def test_errors_reach_their_own_request() -> None:
    async def main():
        return await served(batcher := Batcher(doubled([]), 4, 0.01), *(batcher.submit(each) for each in (1, -1, 2)))

    first, second, third = asyncio.run(main())
    assert (first, third) == (2, 4)
    assert str(second) == "not -1"


def test_work_that_fails_as_a_whole_fails_its_batch_and_not_the_next() -> None:
    calls = []

    def work(items):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            raise MemoryError("too much")
        return list(items)

    async def main():
        batcher = Batcher(work, 2, 0)
        failed = await served(batcher, batcher.submit(1), batcher.submit(2))
        return failed, await served(batcher, batcher.submit(3))

    failed, after = asyncio.run(main())
    assert [type(error) for error in failed] == [MemoryError, MemoryError]
    assert after == [3]
    assert threading.main_thread() not in calls


def test_the_house_is_full_until_someone_leaves() -> None:
    house = House(1)
    with house.visit(), pytest.raises(HouseFull), house.visit():
        pass
    with house.visit():
        assert house.inside == 1
    assert house.inside == 0


def test_what_waits_for_ever_fails_instead() -> None:
    async def main():
        await served(Batcher(doubled([]), 1, 0), asyncio.get_running_loop().create_future())

    with pytest.raises(TimeoutError, match=r"not done after 0\.2 seconds"), limited(0.2):
        asyncio.run(main())
    with pytest.raises(TimeoutError), limited(0.2):
        threading.Event().wait()
