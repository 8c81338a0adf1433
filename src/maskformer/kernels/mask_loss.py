"""Focal and dice loss of matched masks on the CPU, value and gradient in one walk (MaskFormer, section 3.2 and 4).

The plain formulation (`maskformer.losses.mask_loss`) makes some twenty full-size maps per mask, each of them a trip to
main memory. Here a mask is upsampled, compared and its gradient brought back block by block, so that a full-size map
never exists; the gradients, two small maps per mask, are made in the forward pass because all they need is at hand.

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

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer.kernels.threads import in_threads
from maskformer.kernels.upsampling import Block, Size, build_upsampling

__all__ = ["mask_losses"]


def mask_losses(
    logits: Tensor, masks: Sequence[Tensor], target_index: Sequence[Tensor], valid: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Focal loss (alpha 0.25, gamma 2, mean over pixels) and dice loss of each matched pair, at the targets' size.

    The logits are upsampled bilinearly. Differentiable once, with respect to the logits. The pairs are divided among
    as many threads as torch uses (`torch.get_num_threads()`).

    Args:
        logits: [P, h, w] logits of the matched queries, the pairs of the first image first. Computed in float32
            whatever the type, except for float64.
        masks: per image [N, H, W] bool, all its targets; nothing is copied. Images may differ in size.
        target_index: per image the rows of `masks` that its pairs are matched with; P in all.
        valid: per image [H, W] bool, False where a pixel counts for nothing.

    Returns:
        Two [P] tensors, float32 (float64 for float64 logits); 0 where no pixel is valid.

    Raises:
        ValueError: tensors that are not on the CPU, or masks that are not bool.
        IndexError: a row that `masks` does not have.
        NotImplementedError: in the backward pass, when a second derivative is asked for.
    """
    for tensor in (logits, *masks, *(() if valid is None else valid)):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"mask_losses got a tensor on {tensor.device} but runs on the CPU alone; move it to the CPU, or use "
                "maskformer.losses.matched_mask_losses, which runs anywhere."
            )
    for mask in (*masks, *(() if valid is None else valid)):
        if mask.dtype != torch.bool:
            raise ValueError(f"mask_losses got {mask.dtype} masks but takes torch.bool; convert them with .bool().")
    assert len(masks) == len(target_index), "one entry per image"
    assert len(logits) == sum(map(len, target_index)), "one target per pair"
    pairs: list[_Pair] = []
    for image, rows in enumerate(target_index):
        image_valid = None if valid is None else valid[image]
        num_valid = masks[image][:1].numel() if image_valid is None else int(image_valid.count_nonzero())
        pairs += [_Pair(masks[image][row], image_valid, max(1, num_valid)) for row in rows.tolist()]
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    focal, dice = _MaskLosses.apply(logits, pairs, with_gradient)  # pyright: ignore[reportGeneralTypeIssues]
    return focal, dice


class _Pair(NamedTuple):
    target: Tensor  # [H, W]
    valid: Tensor | None  # [H, W]
    num_valid: int


class _MaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, pairs: list[_Pair], with_gradient: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        gradients = torch.empty(2, *logits.shape, dtype=dtype, device="cpu") if with_gradient else None
        losses = [(0.0, 0.0)] * len(pairs)
        in_threads(lambda numbers: _walk(logits.detach(), pairs, numbers, losses, gradients), len(pairs))
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
        (gradients,) = ctx.saved_tensors  # [2, P, h, w]
        combined = torch.empty_like(gradients[0])
        upstream = torch.stack(grad_outputs).tolist()

        def combine(numbers: Iterator[int]) -> None:
            for number in numbers:
                (focal, dice), (by_focal, by_dice) = gradients[:, number], (row[number] for row in upstream)
                torch.mul(focal, by_focal, out=combined[number]).add_(dice, alpha=by_dice)

        in_threads(combine, len(combined))
        return combined, None, None


def _walk(
    logits: Tensor,
    pairs: list[_Pair],
    numbers: Iterator[int],
    losses: list[tuple[float, float]],
    gradients: Tensor | None,
) -> None:
    """Fills in the losses and gradients [2, P, h, w] of the pairs whose numbers it draws."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    walkers: dict[torch.Size, _Walker] = {}
    with torch.autocast("cpu", enabled=False):  # it would multiply in bfloat16
        for number in numbers:
            pair = pairs[number]
            size = pair.target.shape
            if size not in walkers:
                walkers[size] = _Walker((logits.shape[1], logits.shape[2]), (size[0], size[1]), dtype)
            gradient = None if gradients is None else gradients[:, number]
            losses[number] = walkers[size].walk(logits[number], pair, gradient)


class _Walker:
    """Scratch space of one thread for masks of one size, and the walk over the blocks of a mask."""

    def __init__(self, small: Size, large: Size, dtype: torch.dtype) -> None:
        self.upsampling = build_upsampling(small, large, num_maps=8, num_gradients=3, dtype=dtype)
        self.sums = torch.empty(len(self.upsampling.blocks), 5, dtype=dtype, device="cpu")
        blocks = self.upsampling.blocks
        maps = {id(block.maps): block.maps.unbind() for block in blocks}  # blocks of a size share theirs
        self.steps = [_Step(block, maps[id(block.maps)], sums) for block, sums in zip(blocks, self.sums, strict=True)]

    def walk(self, logits: Tensor, pair: _Pair, gradient: Tensor | None) -> tuple[float, float]:
        """The focal and dice loss of a pair; their gradients are written into `gradient` [2, h, w]."""
        self.upsampling.load(logits)
        target = self.upsampling.lay_out(pair.target)
        valid = None if pair.valid is None else self.upsampling.lay_out(pair.valid)
        for step in self.steps:
            step.add_up(target, valid)
            if gradient is not None:
                step.differentiate()
        # The blocks are added in double precision; within a block torch adds pairwise.
        target_area, wrong, wrong_target, focal, focal_target = self.sums.double().sum(dim=0).tolist()
        area = 1 + wrong - 2 * wrong_target + 2 * target_area
        dice = wrong / area
        if gradient is not None:
            of_focal, slope, slope_target = self.upsampling.gradients()
            torch.mul(of_focal, -1 / pair.num_valid, out=gradient[0])
            torch.mul(slope, (1 - dice) / area, out=gradient[1]).sub_(slope_target, alpha=2 / area)
        return (0.75 * focal - 0.5 * focal_target) / pair.num_valid, dice


class _Step:
    """The work on one block. Each map of its scratch space, [n], holds one value after the other."""

    def __init__(self, block: Block, maps: Sequence[Tensor], sums: Tensor) -> None:
        self.block, self.maps, self.sums = block, maps, sums
        self.addends = block.maps[3:8]  # t, p, t p, p^2 s, t p^2 s: what is added up
        self.zero = block.maps.new_zeros(())

    def add_up(self, target: Tensor, valid: Tensor | None) -> None:
        z, v, p2, t, p, tp, f, tf = self.maps
        s = z
        self.block.upsample()  # x
        self.block.gather(target, into=3)
        torch.addcmul(z, t, z, value=-2, out=z)  # x - 2 t x
        torch.sigmoid(z, out=p)
        torch.logaddexp(z, self.zero, out=s)
        if valid is not None:
            self.block.gather(valid, into=1)
            p *= v  # p = 0 takes a pixel out of everything but the area of the target
            t *= v
        torch.mul(p, t, out=tp)
        torch.mul(p, p, out=p2)
        torch.mul(p2, s, out=f)
        torch.mul(f, t, out=tf)
        torch.sum(self.addends, dim=1, out=self.sums)

    def differentiate(self) -> None:
        s, slope, p2, t, p, tp = self.maps[:6]
        negative_focal, slope_target = s, p2
        torch.sub(p, p2, out=slope)  # p (1 - p)
        torch.addcmul(p2, slope, s, value=2, out=s)  # p^2 + 2 p (1 - p) s
        torch.mul(s, tp.sub_(p, alpha=0.75), out=negative_focal)  # times (t - 3/4) p
        torch.mul(slope, t, out=slope_target)
        self.block.collect()
