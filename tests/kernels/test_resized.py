"""The decisions of a resize against the resize itself."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskformer.kernels import compiled, resized
from maskformer.kernels.resized import Resize

PATHS = [pytest.param(True, marks=pytest.mark.skipif(not compiled.available, reason="numba is not installed")), False]


@pytest.fixture(params=PATHS, ids=["loops", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Compiled loops or torch's operations; the answers must be the same."""
    monkeypatch.setattr(compiled, "available", request.param)
    return request.param


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


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    equals = smooth(1, (6, 5), 0).expand(3, -1, -1).contiguous()  # values that float32 rounds
    assert not Resize((6, 5), (31, 41)).strongest_plane(equals).any()


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


@pytest.mark.parametrize("band_values", [1, 2**20])
def test_what_is_mixed_from_planes_is_compared_band_by_band(monkeypatch: pytest.MonkeyPatch, band_values: int) -> None:
    monkeypatch.setattr(resized, "BAND_VALUES", band_values)
    planes, weights = smooth(5, (20, 24), 0), torch.randn(5, 9, generator=torch.Generator().manual_seed(1))

    def mix(some: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,khw->chw", weights, some.sigmoid() - 0.5)

    resize = Resize((20, 24), (83, 99))
    found = resize.strongest_plane(planes, mix, torch.int32)
    assert found.dtype == torch.int32
    assert found.unique().numel() > 1
    assert torch.equal(found.long(), resize.plain(mix(planes)).argmax(0))


def test_downsizing_and_lone_cells() -> None:
    """Where blocks skip cells, or both sides of a block are the same cell."""
    for cells, size in (((30, 41), (7, 5)), ((1, 9), (20, 4)), ((6, 1), (6, 1))):
        assert not differs(Resize(cells, size), smooth(4, cells, 3)).any()


def test_threads_change_nothing(num_threads: int) -> None:
    planes = smooth(7, (40, 30), 5)
    resize = Resize((40, 30), (171, 133))
    plain = resize.plain(planes)
    assert torch.get_num_threads() == num_threads
    with torch.inference_mode():  # which is the calling thread's alone
        planes = planes.clone()
        assert torch.equal(resize.strongest_plane(planes, torch.neg), plain.argmin(0))
        assert torch.equal(resize.areas_above(planes, 0.1), (plain >= 0.1).sum((1, 2)))
    assert torch.get_num_threads() == num_threads


def test_nan_gives_a_plane_that_exists() -> None:
    planes = torch.full((3, 8, 8), torch.nan)
    assert Resize((8, 8), (20, 20)).strongest_plane(planes).unique().tolist() in ([0], [1], [2])


def test_nothing_reaches_the_threshold() -> None:
    resize = Resize((8, 8), (64, 64))
    assert resize.areas_above(torch.zeros(3, 8, 8), 0.5).tolist() == [0, 0, 0]
    assert (resize.topmost(torch.zeros(3, 8, 8), 0.5) == -1).all()
    assert not resize.mask_above(torch.zeros(8, 8), 0.5).any()


def test_most_blocks_are_settled_without_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel is for: of two half planes only the seam is looked at."""
    monkeypatch.setattr(compiled, "available", False)  # inside the loops nothing can be counted
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
