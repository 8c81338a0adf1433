"""Small batches and criteria that the tests of the loss share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from maskformer.losses import MaskFormerHungarianMatcher, MaskFormerLoss

WEIGHTS = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}


@dataclass
class Batch:
    """Logits that require gradients and targets, in the order of the criterion's arguments."""

    masks: Tensor
    classes: Tensor
    mask_labels: list[Tensor]
    class_labels: list[Tensor]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        return self.masks, self.classes, self.mask_labels, self.class_labels


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(
        counts: tuple[int, ...] = (2, 3),
        num_queries: int = 6,
        num_labels: int = 5,
        size: tuple[int, int] = (24, 32),
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        height, width = size
        shape = (len(counts), num_queries)
        return Batch(
            (2 * torch.randn(*shape, height // 4, width // 4, generator=generator)).to(dtype).requires_grad_(),
            torch.randn(*shape, num_labels + 1, generator=generator).to(dtype).requires_grad_(),
            [torch.rand(n, height, width, generator=generator) > 0.6 for n in counts],
            [torch.randint(num_labels, (n,), generator=generator) for n in counts],
        )

    return make


@pytest.fixture
def make_criterion() -> Callable[..., MaskFormerLoss]:
    def make(num_labels: int = 5, class_weights: list[float] | None = None) -> MaskFormerLoss:
        matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
        return MaskFormerLoss(num_labels, matcher, WEIGHTS, eos_coef=0.1, class_weights=class_weights)

    return make
