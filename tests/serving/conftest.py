"""One Segmenter for all tests of the room, pictures that it knows, and an end to tests that would wait for ever."""

import contextlib
import io
import signal
from collections.abc import Iterator

import pytest
from PIL import Image

from maskformer import Segmenter
from maskformer.data.scenes import draw_scene
from maskformer.serving.predictor import Predictor

LIMITS = {False: 60, True: 900}
"""Seconds of a set-up, a call or a clearing up, by whether the test is slow."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TimeoutError in the main thread after so long, and again and again, as what clears up may wait for ever too."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with limited(LIMITS["slow" in item.keywords]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with limited(LIMITS["slow" in item.keywords]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    with limited(LIMITS["slow" in item.keywords]):
        return (yield)


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained("scenes", device="cpu")


@pytest.fixture(scope="session")
def predictor(segmenter) -> Predictor:
    return Predictor(segmenter, "scenes", max_pixels=1_000_000, max_batch=4)


@pytest.fixture(scope="session")
def scenes() -> list[bytes]:
    return [png_of(draw_scene(seed, size).image) for seed, size in enumerate([(96, 128), (128, 96), (96, 128)])]


def png_of(array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()
