"""Focal and dice loss of matched masks on the CPU, value and gradient in one walk (MaskFormer, section 3.2 and 4).

The plain formulation (`maskformer.losses.mask_loss`) makes some twenty full-size maps per mask, each of them a trip to
main memory. Here a mask is upsampled, compared and its gradient brought back row by row (compiled, see
`maskformer.kernels.loss_loops`) or, without numba and in float64, block by block, so that a full-size map never exists.
The gradients, two small maps per mask, are made in the forward pass because all they need is at hand.

Notation, per pixel: t the target, z the logit with the sign turned towards the mistake (-x where t = 1, else x),
p = sigmoid(z) the probability of being wrong, s = softplus(z) = -log(1 - p), a = 3/4 - t/2 the weight. Then

    focal = a p^2 s              d focal / dx = (3/4 - t) p (p^2 + 2 p (1 - p) s)
    dice = W / D                 d dice / dx = p (1 - p) ((1 - 2 t) / D - W / D^2)

with W the sum of p, D = 1 + |prediction| + |target| = 1 + W - 2 sum(t p) + 2 sum(t). This form of the dice loss equals
1 - (2 |intersection| + 1) / (|prediction| + |target| + 1) and does not cancel for good masks. D and W are known only
after the walk, so p (1 - p) and t p (1 - p) are brought back to stride 4 separately and combined at the end.

Shapes: B batch, P mask pairs, N targets of one image, H W image, h w stride-4 map, n pixels of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer.kernels import compiled
from maskformer.kernels.loss_loops import walk
from maskformer.kernels.packed_masks import PackedMasks, plane_of
from maskformer.kernels.threads import in_threads
from maskformer.kernels.upsampling import Block, Upsampling, build_upsampling


def mask_losses(
    logits: Tensor,
    masks: Sequence[Tensor | PackedMasks],
    target_index: Sequence[Tensor],
    valid: Sequence[Tensor] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Focal loss (alpha 0.25, gamma 2, mean over pixels) and dice loss of each matched pair, at the targets' size.

    The logits are upsampled bilinearly. Differentiable once, with respect to the logits. The pairs are divided among
    as many threads as torch uses (`torch.get_num_threads()`).

    Args:
        logits: [P, h, w] logits of the matched queries, the pairs of the first image first. Computed in float32
            whatever the type, except for float64.
        masks: per image [N, H, W] bool or packed, on the CPU, all its targets. Images may differ in size. Nothing is
            copied but, where rows of pixels are not contiguous, one mask per thread.
        target_index: per image the rows of `masks` that its pairs are matched with; P in all.
        valid: per image [H, W] bool, False where a pixel counts for nothing.

    Returns:
        Two [P] tensors, float32 (float64 for float64 logits); 0 where no pixel is valid.

    Raises:
        IndexError: a row that `masks` does not have.
        NotImplementedError: in the backward pass, when a second derivative is asked for.
    """
    assert logits.device.type == "cpu", "elsewhere maskformer.losses.matched_mask_losses does the same"
    unpacked = [image_masks for image_masks in masks if isinstance(image_masks, Tensor)]
    assert all(mask.dtype == torch.bool for mask in (*unpacked, *(() if valid is None else valid))), (
        "masks must be bool"
    )
    assert len(logits) == sum(map(len, target_index)), "one target per pair"
    pairs: list[_Pair] = []
    for image, rows in enumerate(target_index):
        image_valid = None if valid is None else valid[image].contiguous()
        num_valid = math.prod(masks[image].shape[1:]) if image_valid is None else int(image_valid.count_nonzero())
        pairs += [_Pair(*plane_of(masks[image], row), image_valid, max(1, num_valid)) for row in rows.tolist()]
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    focal, dice = _MaskLosses.apply(logits, pairs, with_gradient)  # pyright: ignore[reportGeneralTypeIssues]
    return focal, dice


class _Pair(NamedTuple):
    plane: Tensor  # [H, W], the target where plane & bits == value
    bits: int
    value: int
    valid: Tensor | None  # [H, W]
    num_valid: int


class _MaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, pairs: list[_Pair], with_gradient: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        gradients = torch.empty(len(pairs), 2, *logits.shape[1:], dtype=dtype, device="cpu") if with_gradient else None
        losses = [(0.0, 0.0)] * len(pairs)
        small, logits = (logits.shape[1], logits.shape[2]), logits.detach()
        by_rows = compiled.available and dtype == torch.float32

        def work(numbers: Iterator[int]) -> None:
            scratch = cache(lambda *large: build_upsampling(small, large, num_maps=8, num_gradients=3, dtype=dtype))
            with torch.autocast("cpu", enabled=False):  # it would multiply in bfloat16
                for number in numbers:
                    gradient = None if gradients is None else gradients[number]
                    pair = pairs[number]
                    if by_rows:
                        losses[number] = _walk_rows(logits[number], pair, gradient)
                    else:
                        losses[number] = _walk_blocks(scratch(*pair.plane.shape), logits[number], pair, gradient)

        in_threads(work, len(pairs))
        ctx.save_for_backward(gradients)
        focal, dice = torch.tensor(losses, dtype=dtype, device="cpu").view(-1, 2).unbind(dim=1)  # [P] each
        return focal.clone(), dice.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # silence would make the second derivative 0
            raise NotImplementedError(
                "mask_losses can be differentiated only once, but was asked for a gradient with create_graph=True; use "
                "maskformer.losses.matched_mask_losses for second derivatives."
            )
        (gradients,) = ctx.saved_tensors  # [P, 2, h, w]
        combined = torch.empty_like(gradients[:, 0])
        upstream = torch.stack(grad_outputs).tolist()

        def combine(numbers: Iterator[int]) -> None:
            for number in numbers:
                (focal, dice), (by_focal, by_dice) = gradients[number], (row[number] for row in upstream)
                torch.mul(focal, by_focal, out=combined[number]).add_(dice, alpha=by_dice)

        in_threads(combine, len(combined))
        return combined, None, None


def _walk_rows(logits: Tensor, pair: _Pair, gradient: Tensor | None) -> tuple[float, float]:
    """The focal and dice loss of a pair; their gradients are written into `gradient` [2, h, w]."""
    return walk(
        logits.float().contiguous().numpy(),
        pair.plane.contiguous().numpy(),
        pair.bits,
        pair.value,
        None if pair.valid is None else pair.valid.numpy(),
        pair.num_valid,
        None if gradient is None else gradient.numpy(),
    )


def _walk_blocks(scratch: Upsampling, logits: Tensor, pair: _Pair, gradient: Tensor | None) -> tuple[float, float]:
    """As `_walk_rows`, in plain torch."""
    scratch.load(logits)
    target = scratch.lay_out(pair.plane & pair.bits == pair.value)
    valid = None if pair.valid is None else scratch.lay_out(pair.valid)
    sums: list[Tensor] = []
    for block in scratch.blocks:
        sums.append(_add_up(block, target, valid))
        if gradient is not None:
            _differentiate(block)
    # The blocks are added in double precision; within a block torch adds pairwise.
    target_area, wrong, wrong_target, focal, focal_target = torch.stack(sums).double().sum(dim=0).tolist()
    area = 1 + wrong - 2 * wrong_target + 2 * target_area
    dice = wrong / area
    if gradient is not None:
        of_focal, slope, slope_target = scratch.gradients()
        torch.mul(of_focal, -1 / pair.num_valid, out=gradient[0])
        torch.mul(slope, (1 - dice) / area, out=gradient[1]).sub_(slope_target, alpha=2 / area)
    return (0.75 * focal - 0.5 * focal_target) / pair.num_valid, dice


def _add_up(block: Block, target: Tensor, valid: Tensor | None) -> Tensor:
    """Sums of t, p, t p, p^2 s, t p^2 s over a block. Its scratch maps hold one value after the other."""
    z, v, p2, t, p, tp, f, tf = block.values
    s = z
    block.upsample()  # x
    block.gather(target, into=3)
    torch.addcmul(z, t, z, value=-2, out=z)  # x - 2 t x
    torch.sigmoid(z, out=p)
    torch.logaddexp(z, z.new_zeros(()), out=s)
    if valid is not None:
        block.gather(valid, into=1)
        p *= v  # p = 0 takes a pixel out of everything but the area of the target
        t *= v
    torch.mul(p, t, out=tp)
    torch.mul(p, p, out=p2)
    torch.mul(p2, s, out=f)
    torch.mul(f, t, out=tf)
    return block.maps[3:8].sum(dim=1)


def _differentiate(block: Block) -> None:
    """Collects the gradients of what `_add_up` has left in the maps, in the place of s, v and p^2."""
    s, slope, p2, t, p, tp = block.values[:6]
    torch.sub(p, p2, out=slope)  # p (1 - p)
    torch.addcmul(p2, slope, s, value=2, out=s)  # p^2 + 2 p (1 - p) s
    torch.mul(s, tp.sub_(p, alpha=0.75), out=s)  # times (t - 3/4) p: the focal loss, negative
    torch.mul(slope, t, out=p2)  # t p (1 - p)
    block.collect()
