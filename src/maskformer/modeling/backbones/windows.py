"""Where the windows of Swin lie over the tokens (Liu et al., arXiv 2103.14030, section 3.2), as one permutation.

Padding the map to whole windows, rolling it by half a window and cutting it up are three copies that only move tokens.
Here they are one: `source` says which token stands in each slot of each window, `slot` says the same backwards. All
padding is a single extra token, so that no layer computes on the padding itself.

B batch, h w tokens of a map, M window side, n windows per image, N = M * M slots per window, C channels.
"""

from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class WindowLayout(NamedTuple):
    """Windows over a map of h x w tokens; token (y, x) has the number y * w + x, and h * w is the padding."""

    source: Tensor
    """[n * N]: the token in each slot, windows row by row, slots row by row."""
    slot: Tensor
    """[h * w]: the slot of each token."""
    region: Tensor
    """[n, N]: part of the picture a slot comes from; in a shifted window only slots of one region are neighbours."""


def ceil_divide(size: int, by: int) -> int:
    """Pieces of `by` that cover `size`."""
    return (size + by - 1) // by


def window_layout(tokens: Tensor, window_size: int, shift: int) -> WindowLayout:
    """The layout for `tokens` [B, h, w, C], on their device; remembered for the sizes seen last.

    While a graph is traced the sizes may be symbols and tensors stand-ins: nothing of that may be remembered.
    """
    height, width = tokens.shape[1:3]
    if torch.compiler.is_compiling() or type(tokens) is not Tensor:
        return _make_layout((height, width), window_size, shift, tokens.device)
    return _remembered_layout(height, width, window_size, shift, tokens.device)


@lru_cache(maxsize=64)
def _remembered_layout(height: int, width: int, window_size: int, shift: int, device: torch.device) -> WindowLayout:
    # Made outside inference mode, because training may meet the same size next. Made on the CPU, because the copy to a
    # GPU waits until it is done: another stream that finds the layout here finds it complete.
    with torch.inference_mode(False):
        made = _make_layout((height, width), window_size, shift, torch.device("cpu"))
        return WindowLayout(*(each.to(device) for each in made))


def _make_layout(size: tuple[int, int], window_size: int, shift: int, device: torch.device) -> WindowLayout:
    """Rolling by `shift` brings the first rows and columns behind the last. With M = 4, seven tokens, 7 the padding:

    straight  | 0 1 2 3 | 4 5 6 7 |      shifted  | 2 3 4 5 | 6 7 0 1 |     0 1 share a window with 6 7, but are
    region    | 0 0 0 0 | 0 0 0 0 |      region   | 0 0 0 0 | 0 0 1 1 |     not their neighbours.
    """
    (height, width), side = size, window_size
    rows, columns = _count(height, side), _count(width, side)
    y = _rolled(rows * side, rows * side, shift, device)
    x = _rolled(columns * side, columns * side, shift, device)

    def cut(grid: Tensor) -> Tensor:
        windows = grid.view(rows, side, columns, side).transpose(1, 2)
        return windows.reshape(rows * columns, side * side)  # [hp, wp] -> [n, N]

    exists = (y < height)[:, None] & (x < width)[None, :]
    source = torch.where(exists, y[:, None] * width + x[None, :], height * width)
    region = 2 * (y < shift).long()[:, None] + (x < shift).long()[None, :]

    y = _rolled(height, rows * side, rows * side - shift, device)
    x = _rolled(width, columns * side, columns * side - shift, device)
    window = (y // side)[:, None] * columns + (x // side)[None, :]
    slot = (window * side + (y % side)[:, None]) * side + (x % side)[None, :]  # [h, w]
    return WindowLayout(cut(source).flatten(), slot.flatten(), cut(region))


def _rolled(count: int, period: int, by: int, device: torch.device) -> Tensor:
    """(0, 1, ..., count - 1) + by, modulo period, for by <= period; without the operator, which ONNX cannot follow."""
    position = torch.arange(count, device=device) + by
    return torch.where(position < period, position, position - period)


def _count(size: int, window_size: int) -> int:
    """Windows that cover `size` tokens.

    An exported graph must hold for every image size, yet torch.export would conclude from the example's count that
    there is always one window, or always several. Taken out of a tensor, the count is a number it knows nothing about
    except what it is told here.
    """
    count = ceil_divide(size, window_size)
    if torch.compiler.is_exporting():
        count = cast(int, torch.full((), count, dtype=torch.long).item())
        torch._check(count >= 1)  # pyright: ignore[reportPrivateUsage] (documented for this use)
        torch._check(count * window_size >= size)  # pyright: ignore[reportPrivateUsage]
    return count


def to_windows(tokens: Tensor, layout: WindowLayout) -> Tensor:
    """[B, h * w + 1, C] -> [B, n * N, C]; the last token is what padding shall be."""
    if torch.is_grad_enabled() and tokens.requires_grad:
        return cast(Tensor, _ToWindows.apply(tokens, layout.source, layout.slot))
    return tokens.index_select(1, layout.source)


def from_windows(windows: Tensor, layout: WindowLayout) -> Tensor:
    """[B, n * N, C] -> [B, h * w, C]; what stands in the padding is dropped."""
    if torch.is_grad_enabled() and windows.requires_grad:
        return cast(Tensor, _FromWindows.apply(windows, layout.source, layout.slot))
    return windows.index_select(1, layout.slot)


class _ToWindows(torch.autograd.Function):
    """Its own function, because each direction's gradient is the other direction: a copy, where the gradient PyTorch
    would derive adds every row into place, slowly and in the precision of the tokens."""

    @staticmethod
    def forward(tokens: Tensor, source: Tensor, slot: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tokens.index_select(1, source)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (gradient,), (source, slot) = grad_outputs, ctx.saved_tensors
        padding = (source == slot.shape[0]).to(gradient.dtype)
        total = torch.matmul(padding, gradient).unsqueeze(1)  # [n * N] x [B, n * N, C] -> [B, 1, C]
        return torch.cat([gradient.index_select(1, slot), total], dim=1), None, None


class _FromWindows(torch.autograd.Function):
    """The other direction; padding, which was dropped, gets no gradient."""

    @staticmethod
    def forward(windows: Tensor, source: Tensor, slot: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return windows.index_select(1, slot)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (gradient,), (source,) = grad_outputs, ctx.saved_tensors
        padded = torch.cat([gradient, gradient.new_zeros(gradient.shape[0], 1, gradient.shape[2])], dim=1)
        return padded.index_select(1, source), None, None
