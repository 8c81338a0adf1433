"""The plain float64 definition of the mask losses, and settings of torch that must survive the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import compiled


def plain_losses(
    logits: Tensor, masks: list[Tensor], target_index: list[Tensor], valid: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of each pair [P] by their definitions, pair by pair and in float64."""
    focal, dice = [logits.new_zeros(0, dtype=torch.float64)], [logits.new_zeros(0, dtype=torch.float64)]
    rows = [(image, row) for image, index in enumerate(target_index) for row in index.tolist()]
    for pair, (image, row) in enumerate(rows):
        target = masks[image][row]
        keep = torch.ones_like(target) if valid is None else valid[image]
        large = F.interpolate(logits[pair][None, None].double(), size=target.shape, mode="bilinear")[0, 0]
        x, t = large[keep], target[keep].double()
        p, q = _sigmoid(x), _sigmoid(-x)
        cross_entropy = -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))
        wrong = p * (1 - t) + q * t
        weight = 0.25 * t + 0.75 * (1 - t)
        focal.append((weight * wrong**2 * cross_entropy).sum()[None] / max(1, len(x)))
        dice.append(1 - (2 * (p * t).sum()[None] + 1) / (p.sum() + t.sum() + 1))
    return torch.cat(focal), torch.cat(dice)


def _sigmoid(x: Tensor) -> Tensor:
    """With all digits of its derivative p (1 - p), which float64 too loses in 1 - p where p is nearly 1."""
    return torch.where(x > 0, 1 - (-x).sigmoid(), x.sigmoid())


@pytest.fixture(scope="session")
def plain() -> Callable[..., tuple[Tensor, Tensor]]:
    return plain_losses


@pytest.fixture(params=[1, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test that asks for it runs with numba and as it would without."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "available", False)
    elif not compiled.available:
        pytest.skip("numba is not installed; the compiled loops come with it")
    return request.param
