"""The permutation must be padding, rolling and cutting; its gradients those of that."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from maskformer.modeling.backbones import windows
from maskformer.modeling.backbones.windows import from_windows, to_windows, window_layout

SIZES = [(4, 4), (5, 7), (1, 1), (2, 9), (13, 6)]


def step_by_step(tokens: Tensor, side: int, shift: int) -> Tensor:
    """[B, h, w, C] -> [B, n, N, C] by the three copies of the paper's description."""
    batch, height, width, channels = tokens.shape
    padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
    rolled = padded.roll((-shift, -shift), (1, 2))
    rows, columns = rolled.shape[1] // side, rolled.shape[2] // side
    grid = rolled.view(batch, rows, side, columns, side, channels).transpose(2, 3)
    return grid.reshape(batch, rows * columns, side * side, channels)


def with_padding(tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    flat = tokens.flatten(1, 2)
    last = tokens.new_zeros(1, 1, tokens.shape[-1]) if padding is None else padding
    return torch.cat([flat, last.expand(tokens.shape[0], 1, -1)], dim=1)


@pytest.mark.parametrize(("side", "shift"), [(4, 0), (4, 2), (5, 2), (7, 3), (1, 0)])
@pytest.mark.parametrize("size", SIZES)
def test_same_as_step_by_step(size: tuple[int, int], side: int, shift: int) -> None:
    tokens = torch.randn(2, *size, 3)
    layout = window_layout(tokens, side, shift)
    expected = step_by_step(tokens, side, shift)
    assert torch.equal(to_windows(with_padding(tokens), layout), expected.flatten(1, 2))
    assert torch.equal(from_windows(expected.flatten(1, 2), layout), tokens.flatten(1, 2))


@pytest.mark.parametrize("size", SIZES)
def test_regions_are_those_of_the_paper(size: tuple[int, int]) -> None:
    """The nine regions of the rolled picture, drawn one after the other, forbid what our four forbid."""
    side, shift = 4, 2
    height, width = (each + -each % side for each in size)
    drawn = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        drawn[:, rows, columns] = number
    expected = step_by_step(drawn, side, 0)[0, :, :, 0]
    region = window_layout(torch.zeros(1, *size, 1), side, shift).region
    ours = region[:, :, None] != region[:, None, :]
    assert torch.equal(ours, expected[:, :, None] != expected[:, None, :])


@pytest.mark.parametrize("shift", [0, 2])
def test_gradients(shift: int) -> None:
    tokens = torch.randn(2, 5, 3, 2, dtype=torch.double, requires_grad=True)
    padding = torch.randn(1, 1, 2, dtype=torch.double, requires_grad=True)
    layout = window_layout(tokens, 4, shift)

    def there(tokens: Tensor, padding: Tensor) -> Tensor:
        return to_windows(with_padding(tokens, padding), layout)

    assert torch.autograd.gradcheck(there, (tokens, padding))
    slots = torch.randn(2, 32, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda slots: from_windows(slots, layout), (slots,))


def test_remembered_layout_serves_training_after_inference() -> None:
    windows._remembered_layout.cache_clear()
    with torch.inference_mode():
        window_layout(torch.zeros(1, 6, 7, 2), 4, 2)
    tokens = torch.randn(1, 6, 7, 2, requires_grad=True)
    to_windows(with_padding(tokens), window_layout(tokens, 4, 2)).sum().backward()
    assert windows._remembered_layout.cache_info().hits == 1
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


def test_stand_in_tensors_are_not_remembered() -> None:
    windows._remembered_layout.cache_clear()
    with FakeTensorMode():
        window_layout(torch.zeros(1, 6, 7, 2), 4, 2)
    assert windows._remembered_layout.cache_info().currsize == 0
    assert type(window_layout(torch.zeros(1, 6, 7, 2), 4, 2).source) is Tensor
