"""One Segmenter for all tests of the room, and pictures that it knows."""

import io

import pytest
from PIL import Image

from maskformer import Segmenter
from maskformer.data.scenes import draw_scene
from maskformer.serving.predictor import Predictor


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
