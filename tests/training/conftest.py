"""A tiny checkpoint to start from, and torch with one thread."""

import pytest
import torch

from .tiny import save_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("start") / "tiny")


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
