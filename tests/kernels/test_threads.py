"""Threads of ours: every item once, errors arrive, and torch's own threads are left as they were."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from maskformer.kernels import threads
from maskformer.kernels.threads import in_threads, own_threads


@pytest.mark.parametrize("num_items", [0, 1, 2, 50])
def test_every_item_is_drawn_once(num_threads, num_items):
    drawn: list[int] = []
    in_threads(lambda numbers: drawn.extend(numbers), num_items)
    assert sorted(drawn) == list(range(num_items))


def test_torch_does_not_start_threads_within_ours(num_threads):
    inside: list[int] = []
    in_threads(lambda numbers: inside.append(torch.get_num_threads()), 10)
    assert set(inside) == {1}
    assert len(inside) == num_threads


def test_own_threads_are_as_many_as_torch_had(num_threads):
    inside: list[int] = []
    with own_threads():
        assert torch.get_num_threads() == 1
        in_threads(lambda numbers: inside.append(torch.get_num_threads()), 10)
    assert inside == [1] * num_threads
    assert torch.get_num_threads() == num_threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(num_threads):
    in_threads(lambda numbers: None, 10)
    child = os.fork()
    if child == 0:
        drawn: list[int] = []
        in_threads(lambda numbers: drawn.extend(numbers), 10)
        os._exit(0 if sorted(drawn) == list(range(10)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_number_of_threads_is_set_back(num_threads):
    def fail(numbers):
        raise RuntimeError("on purpose")

    threads._pool.cache_clear()  # as in a process that has none yet
    in_threads(lambda numbers: None, 10)
    with pytest.raises(RuntimeError, match="on purpose"):
        in_threads(fail, 10)
    assert torch.get_num_threads() == num_threads
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [num_threads]
