"""The same random numbers in every test, whichever tests ran before it in the same process."""

from __future__ import annotations

import random

import pytest
import torch


def seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed()  # again: what the fixtures drew depends on which of them were there already
