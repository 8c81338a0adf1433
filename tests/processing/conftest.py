"""Model outputs to post-process: round blobs with clear classes, so that every method has something to return."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

BlobMaker = Callable[..., SimpleNamespace]


def _blobs(
    seed: int = 0, batch: int = 2, queries: int = 12, classes: int = 6, grid: tuple[int, int] = (24, 32)
) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    height, width = grid
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    centre_y, centre_x = uniform(batch, queries, 1, 1) * height, uniform(batch, queries, 1, 1) * width
    radius = (0.1 + 0.3 * uniform(batch, queries, 1, 1)) * min(grid)
    distance = ((rows - centre_y) ** 2 + (columns - centre_x) ** 2).sqrt()  # [B, Q, h, w]
    masks = (radius - distance) * 1.5 + 0.1 * uniform(batch, queries, height, width)
    labels = torch.randint(0, classes + 1, (batch, queries), generator=generator)
    logits = torch.nn.functional.one_hot(labels, classes + 1) * (1 + 6 * uniform(batch, queries, 1))
    logits = logits + 0.2 * uniform(batch, queries, classes + 1)
    return SimpleNamespace(class_queries_logits=logits, masks_queries_logits=masks)


@pytest.fixture
def blobs() -> BlobMaker:
    return _blobs


@pytest.fixture
def designed() -> BlobMaker:
    """Outputs from lists: per query a (class, probability) and a mask of probabilities [h, w], for one image."""

    def build(queries: list[tuple[int, float, torch.Tensor]], classes: int) -> SimpleNamespace:
        rows: list[torch.Tensor] = []
        for label, probability, _ in queries:
            row = torch.full((classes + 1,), (1 - probability) / classes)
            row[label] = probability
            rows.append(row.log())
        masks = torch.stack([mask for _, _, mask in queries]).clamp(1e-6, 1 - 1e-6).logit()
        return SimpleNamespace(class_queries_logits=torch.stack(rows)[None], masks_queries_logits=masks[None])

    return build
