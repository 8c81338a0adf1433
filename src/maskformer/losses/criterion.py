"""The loss of MaskFormer (section 3.2): classification of all queries plus mask loss of the matched ones, per head.

Shapes: B batch, Q queries, C classes, N targets of one image, P matched pairs, H W image, h w stride-4 map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from maskformer.kernels.mask_loss import mask_losses
from maskformer.kernels.packed_masks import PackedMasks
from maskformer.kernels.threads import in_threads, own_threads
from maskformer.losses.mask_loss import in_full_precision, matched_mask_losses
from maskformer.losses.matcher import MaskFormerHungarianMatcher
from maskformer.losses.targets import check_predictions, checked_class_labels, checked_targets

TERMS = ("loss_cross_entropy", "loss_mask", "loss_dice")
LOGITS = ("masks_queries_logits", "class_queries_logits")


@dataclass(frozen=True)
class LossNormalizer:
    """The two numbers that the sums of a loss are divided by: `sum / number`, times nothing else.

    Both are means over the processes, because DistributedDataParallel and FSDP average the gradients over the
    processes: mean over R ranks of `sum of the rank / (total / R)` is `sum of all / total`, what one process with the
    whole batch computes. Whoever adds gradients over ranks instead of averaging them must divide by R.

    For gradient accumulation, give one normalizer, made of the targets of all micro-batches of an optimizer step, to
    each of them, and add the losses without dividing by their number (some training engines do so by themselves).

    Source: docs/loss.md#what-is-charged.

    Attributes:
        num_masks: target masks per process, 0-d or a number; below 1 where processes outnumber targets. 0 (no target
            anywhere) divides by 1 instead: the sums are 0 then.
        class_weight: sum over the queries of the weight of the class that each is assigned, 0-d or a number: the
            denominator of a weighted cross entropy. A matched query has its target's class, any other "no object".

    Raises:
        ValueError: from `from_targets`, class labels of the wrong type or range.

    Examples:
        >>> LossNormalizer(num_masks=4.0, class_weight=20.0).num_masks
        4.0
    """

    num_masks: Tensor | float
    class_weight: Tensor | float

    @classmethod
    @torch.no_grad()
    def from_targets(
        cls,
        class_labels: Sequence[Tensor] | Tensor,
        num_queries: int,
        empty_weight: Tensor,
    ) -> LossNormalizer:
        """Counts targets, as a mean over all processes where torch.distributed is initialised; all must then call
        this equally often. Needs no predictions, so it is known before the first micro-batch is run.

        Args:
            class_labels: per image [N] integers in 0..C-1, of one batch or of all micro-batches of a step.
            num_queries: Q of the model. Of an image with N > Q only Q targets can be matched; which ones is not known
                from targets alone, so it counts Q times the mean weight of its targets.
            empty_weight: [C+1] class weights, the last for "no object" (the criterion's buffer).
        """
        labels = checked_class_labels(class_labels, len(class_labels), len(empty_weight) - 1)
        counts = [len(image_labels) for image_labels in labels]
        num_unmatched = sum(max(0, num_queries - count) for count in counts)
        weights = in_full_precision(empty_weight)
        shares = weights.new_tensor([min(1.0, num_queries / count) for count in counts for _ in range(count)])
        matched = (weights[torch.cat(labels).to(weights.device)] * shares).sum()
        # one tensor, so that the processes exchange one message
        numbers = torch.stack([weights.new_tensor(float(sum(counts))), matched + num_unmatched * weights[-1]])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(numbers, op=distributed.ReduceOp.SUM)
            numbers = numbers / distributed.get_world_size()
        return cls(num_masks=numbers[0], class_weight=numbers[1])


class MaskFormerLoss(nn.Module):
    """Cross entropy of all queries, focal and dice loss of the matched ones; for the final and every auxiliary head.

    Source: arXiv 2107.06278, section 3.2.

    Args:
        num_labels: C, without "no object".
        matcher: called with the first four arguments of `forward`, plus valid_mask where there is one; masks are bool
            by then.
        weight_dict: weight of each term, by its name with or without the suffix of the head. As in
            transformers, the model applies them and not `forward`.
        eos_coef: weight of "no object" in the cross entropy (0.1 in the paper).
        class_weights: [C] weights of the classes in the cross entropy, all 1 by default.

    Attributes:
        empty_weight: buffer [C+1], class weights and `eos_coef`. Published files carry it, but here it follows from
            the configuration: a file's value would silently win over a weight that was asked for.

    Raises:
        ValueError: weights that are negative, not finite or of the wrong number.

    Examples:
        >>> weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
        >>> criterion = MaskFormerLoss(3, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), weights, eos_coef=0.1)
        >>> masks, labels = torch.ones(1, 32, 32, dtype=torch.bool), torch.tensor([2])
        >>> logits = torch.zeros(1, 5, 8, 8), torch.zeros(1, 5, 4)  # [B, Q, h, w], [B, Q, C + 1]
        >>> terms = criterion(*logits, [masks], [labels])
        >>> {name: round(float(value), 3) for name, value in terms.items()}
        {'loss_cross_entropy': 1.386, 'loss_mask': 0.043, 'loss_dice': 0.333}
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_labels: int,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        eos_coef: float,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.eos_coef = eos_coef
        self.class_weights = [1.0] * num_labels if class_weights is None else [float(w) for w in class_weights]
        if len(self.class_weights) != num_labels:
            raise ValueError(f"class_weights has {len(self.class_weights)} entries, expected num_labels={num_labels}.")
        for weight in (*self.class_weights, eos_coef):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"class_weights and eos_coef must be finite and not negative, got {weight}.")
        self.register_buffer("empty_weight", self._build_empty_weight(), persistent=False)

    def _build_empty_weight(self) -> Tensor:
        return torch.tensor([*self.class_weights, self.eos_coef], dtype=torch.float32)

    def reset_buffers(self) -> None:
        """Set the buffer again, after a construction on the meta device."""
        self.empty_weight.copy_(self._build_empty_weight())

    def compute_normalizer(self, class_labels: Sequence[Tensor] | Tensor, num_queries: int) -> LossNormalizer:
        """`LossNormalizer.from_targets` with the class weights of this criterion."""
        return LossNormalizer.from_targets(class_labels, num_queries, self.empty_weight)

    def forward(
        self,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Sequence[Tensor | PackedMasks] | Tensor,
        class_labels: Sequence[Tensor] | Tensor,
        auxiliary_predictions: Sequence[Mapping[str, Tensor]] | None = None,
        normalizer: LossNormalizer | None = None,
        valid_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms of all heads. Computed in float32, also under autocast (float64 stays float64).

        Args:
            masks_queries_logits: [B, Q, h, w]
            class_queries_logits: [B, Q, C+1], the last class is "no object".
            mask_labels: per image [N, H, W], bool, uint8 or float with only 0 and 1, or packed, or one [B, N, H, W].
                Smaller images are padded with 0 at the bottom and on the right to the largest of the batch. N may be 0.
                Packed masks are not unpacked but a few at a time.
            class_labels: per image [N] integers in 0..C-1.
            auxiliary_predictions: per decoder layer but the last a mapping with the two logits, by these names.
            normalizer: what to divide the sums by. None: that of these targets, as a mean over all processes when
                torch.distributed is initialised; every process must call the criterion equally often then.
            valid_mask: [B, H, W] bool, H and W of the largest image; pixels that are False (padding, ignored) count
                neither in the matching nor in the loss.

        Returns:
            `loss_cross_entropy`, `loss_mask` (focal), `loss_dice`, then the same with `_0`, `_1`, ... of the auxiliary
            heads: 0-d, >= 0, on the device of the logits, connected to them even without any target.

        Raises:
            ValueError: predictions or targets of a wrong shape, type, value or number.
            FloatingPointError: non-finite predictions, with the tensor, its head and the image. It is raised after
                the exchange between the processes, so that one bad rank does not leave the others waiting.
        """
        heads = self._heads(masks_queries_logits, class_queries_logits, auxiliary_predictions)
        masks, labels, valid = checked_targets(mask_labels, class_labels, valid_mask, class_queries_logits)
        if normalizer is None:
            normalizer = self.compute_normalizer(labels, class_queries_logits.shape[1])
        losses: dict[str, Tensor] = {}
        kind = masks_queries_logits.device.type
        with torch.autocast(kind, enabled=False), own_threads() if kind == "cpu" else contextlib.nullcontext():
            _check_finite(heads)
            matches = self._match(list(heads.values()), masks, labels, valid)
            for (suffix, head), own in zip(heads.items(), matches, strict=True):
                sums = self._head_sums(*head, own, (masks, labels, valid))
                numbers = (normalizer.class_weight, normalizer.num_masks, normalizer.num_masks)
                for name, value, number in zip(TERMS, sums, numbers, strict=True):
                    losses[name + suffix] = value / _not_zero(number, value)
        return losses

    def _heads(
        self, masks: Tensor, classes: Tensor, auxiliary_predictions: Sequence[Mapping[str, Tensor]] | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The two logits of each head, by the suffix of its terms: "" for the final head, then "_0", "_1", ..."""
        heads = {"": (masks, classes)}
        for number, predictions in enumerate(auxiliary_predictions or ()):
            missing = set(LOGITS) - predictions.keys()
            if missing:
                raise ValueError(f"auxiliary_predictions[{number}] has no {' and no '.join(sorted(missing))}.")
            heads[f"_{number}"] = (predictions[LOGITS[0]], predictions[LOGITS[1]])
        expected = [*classes.shape[:2], self.num_labels + 1]
        for suffix, (masks_logits, class_logits) in heads.items():
            check_predictions(masks_logits, class_logits, _head_name(suffix))
            if list(class_logits.shape) != expected:
                raise ValueError(
                    f"class_queries_logits of {_head_name(suffix)} has shape {list(class_logits.shape)}, expected "
                    f"{expected}: num_labels={self.num_labels} classes and no object."
                )
        return heads

    def _match(
        self,
        heads: list[tuple[Tensor, Tensor]],
        masks: list[Tensor | PackedMasks],
        labels: list[Tensor],
        valid: Tensor | None,
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Per head and image the matched queries and targets, on the device of the logits."""
        if type(self.matcher) is MaskFormerHungarianMatcher:
            return self.matcher.match_heads(heads, masks, labels, valid)
        # An own matcher, written for transformers, knows bool masks and four arguments.
        unpacked = [own if isinstance(own, Tensor) else own.unpack() for own in masks]
        extra, device = () if valid is None else (valid,), heads[0][0].device
        return [
            [(q.to(device), t.to(device)) for q, t in self.matcher(*head, unpacked, labels, *extra)] for head in heads
        ]

    def _head_sums(
        self,
        masks_logits: Tensor,
        class_logits: Tensor,
        matches: list[tuple[Tensor, Tensor]],
        targets: tuple[list[Tensor | PackedMasks], list[Tensor], Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three terms of one head before they are divided by the normalizer."""
        (masks, labels, valid), device = targets, class_logits.device
        images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)])  # [P]
        queries = torch.cat([queries for queries, _ in matches])  # [P]

        classes = torch.full(class_logits.shape[:2], self.num_labels, device=device)  # [B, Q]
        classes[images, queries] = torch.cat([own.to(device)[t] for own, (_, t) in zip(labels, matches, strict=True)])
        logits = in_full_precision(class_logits)
        weight = self.empty_weight.to(logits)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")

        # One gather for the whole batch: its backward fills one gradient of [B, Q, h, w], not one per image.
        matched = in_full_precision(masks_logits[images, queries])  # [P, h, w]
        mask_terms = mask_losses if device.type == "cpu" else matched_mask_losses
        focal, dice = (term.sum() for term in mask_terms(matched, masks, [rows for _, rows in matches], valid))
        return cross_entropy, focal, dice


def _head_name(suffix: str) -> str:
    return f"auxiliary head {suffix[1:]}" if suffix else "the final head"


def _not_zero(number: Tensor | float, like: Tensor) -> Tensor:
    number = torch.as_tensor(number, dtype=like.dtype, device=like.device)
    return torch.where(number == 0, 1.0, number)


def _check_finite(heads: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raises FloatingPointError for the first tensor and image with NaN or infinity; one copy to the host for all."""
    places = [f"{name} of {_head_name(suffix)}" for suffix in heads for name in LOGITS]
    tensors = [tensor.detach().flatten(1) for pair in heads.values() for tensor in pair]
    # NaN passes through minimum and maximum, so two numbers per image tell all, without a map of flags. Two passes:
    # torch's aminmax along an axis takes twenty times as long.
    found = tensors.copy()

    def look(numbers: Iterator[int]) -> None:
        for number in numbers:
            values = tensors[number]
            found[number] = values.amin(dim=1).isfinite() & values.amax(dim=1).isfinite()  # [B]

    if tensors[0].device.type == "cpu":
        in_threads(look, len(tensors))
    else:
        look(iter(range(len(tensors))))
    for place, finite in zip(places, torch.stack(found).tolist(), strict=True):
        if not all(finite):
            raise FloatingPointError(
                f"{place} is non-finite (NaN or infinity) for image {finite.index(False)} of the batch: lower the "
                "learning rate, clip the gradients or, in float16, use a gradient scaler or bfloat16."
            )
