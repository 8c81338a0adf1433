"""When two maps count as equal, and that not a number is no number."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskformer import Segmenter
from maskformer.export.check import compare, map_agreement


def agreement(expected: list[int], labels: list[int], found: list[int], found_labels: list[int]) -> float:
    return map_agreement(np.array([expected]), np.array(labels), np.array([found]), np.array(found_labels))


def test_the_numbers_of_segments_do_not_matter() -> None:
    assert agreement([1, 1, 2, 0], [-1, 7, 7], [2, 2, 1, 0], [-1, 7, 7]) == 1


def test_their_labels_do() -> None:
    assert agreement([1, 1, 2, 0], [-1, 7, 8], [1, 1, 2, 0], [-1, 7, 9]) == pytest.approx(3 / 4)


def test_a_segment_in_two_parts_counts_with_the_larger() -> None:
    assert agreement([1, 1, 1, 0], [-1, 7], [1, 2, 2, 0], [-1, 7, 7]) == pytest.approx(3 / 4)


def test_void_is_a_segment_like_others() -> None:
    assert agreement([0, 0, 1, 1], [-1, 7], [0, 1, 1, 1], [-1, 7]) == pytest.approx(3 / 4)


@pytest.mark.parametrize("broken", ["class_queries_logits", "masks_queries_logits"])
def test_not_a_number_in_any_output_is_the_largest_difference(checkpoint: str, broken: str) -> None:
    source = Segmenter.from_pretrained(checkpoint, device="cpu")

    def exported(pixels: torch.Tensor) -> SimpleNamespace:
        outputs = source.model(pixel_values=pixels)
        found = {name: outputs[name].clone() for name in ("class_queries_logits", "masks_queries_logits")}
        found[broken][0, 0] = math.nan
        return SimpleNamespace(**found)

    exported.graph_task = None  # pyright: ignore
    assert math.isnan(next(compare(exported, source)).difference)  # pyright: ignore
