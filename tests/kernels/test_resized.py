"""The decisions of a resize against the resize itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.kernels.resized import Resize


def smooth(count: int, cells: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(1, count, *cells, generator=generator)
    return torch.nn.functional.avg_pool2d(rough, 3, stride=1, padding=1)[0]


def differs(resize: Resize, planes: torch.Tensor) -> torch.Tensor:
    """Pixels where the decision is another and the two values are not the same to float32's precision."""
    plain = resize.plain(planes)
    winner = resize.strongest_plane(planes)
    chosen = plain.gather(0, winner[None])[0]
    return (plain.max(0).values - chosen) > 1e-6 * plain.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    cells=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    flat=st.booleans(),
)
def test_equals_the_plain_resize(
    cells: tuple[int, int], size: tuple[int, int], count: int, seed: int, flat: bool
) -> None:
    planes = smooth(count, cells, seed)
    if flat:  # plateaus: exact ties between planes
        planes = planes.round()
    resize = Resize(cells, size)
    plain = resize.plain(planes)
    assert not differs(resize, planes).any()
    threshold = 0.25
    near = ((plain - threshold).abs() < 1e-6).sum((1, 2))
    assert ((resize.areas_above(planes, threshold) - (plain >= threshold).sum((1, 2))).abs() <= near).all()
    top = resize.topmost(planes, threshold)
    expected = torch.where((plain >= threshold).any(0), (plain >= threshold).int().argmax(0), -1)
    assert not ((top != expected) & ((plain - threshold).abs() >= 1e-6).all(0)).any()
    wrong = resize.mask_above(planes[0], threshold) != (plain[0] >= threshold)
    assert (wrong & ((plain[0] - threshold).abs() >= 1e-6)).sum() == 0


@pytest.mark.parametrize("scales", [(4.3, 4.1), (None, 5.25)])
def test_fractional_windows(scales: tuple[float | None, float | None]) -> None:
    planes = smooth(6, (20, 24), 0)
    resize = Resize((20, 24), (83, 99), scales)
    assert not differs(resize, planes).any()


def test_ties_go_to_the_lowest_index() -> None:
    planes = torch.ones(4, 6, 6)
    assert not Resize((6, 6), (30, 31)).strongest_plane(planes).any()
    planes[0] = 0
    assert (Resize((6, 6), (30, 31)).strongest_plane(planes) == 1).all()


def test_saturated_and_zero_planes() -> None:
    planes = torch.zeros(3, 8, 8)
    planes[1, 2:5, 2:5] = 1
    resize = Resize((8, 8), (64, 64))
    assert not differs(resize, planes).any()
    assert resize.areas_above(planes, 0.5).tolist() == (resize.plain(planes) >= 0.5).sum((1, 2)).tolist()


def test_noise_falls_back_to_the_plain_resize() -> None:
    planes = torch.randn(40, 10, 10, generator=torch.Generator().manual_seed(0))
    resize = Resize((10, 10), (20, 20))
    assert torch.equal(resize.strongest_plane(planes), resize.plain(planes).argmax(0))


def test_most_blocks_are_settled_without_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel is for: of two half planes only the seam is looked at."""
    seen = 0
    interpolate = Resize._interpolate

    def counting(self: Resize, planes: torch.Tensor, index: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(blocks)
        return interpolate(self, planes, index, blocks)

    monkeypatch.setattr(Resize, "_interpolate", counting)
    planes = torch.zeros(2, 32, 32)
    planes[0, :, :16] = 1
    planes[1, :, 16:] = 1
    winner = Resize((32, 32), (256, 256)).strongest_plane(planes)
    assert winner[:, :128].sum() == 0
    assert bool(winner[:, 128:].all())
    assert seen <= 2 * 33
