"""From micro-batches to a loss: what is moved to the device, handed to the network, and divided by what.

Both kinds of network have one divisor for all micro-batches and processes of a step, so that the loss and its gradient
do not depend on how the batch was cut. The loss of a process is scaled such that its *mean* over the processes is the
loss of the batch, because that is what DistributedDataParallel makes of gradients. B micro-batch, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from maskformer.losses import LossNormalizer
from maskformer.training.network import is_per_pixel

Batch = dict[str, Any]
TERMS = ("loss_cross_entropy", "loss_mask", "loss_dice")


class MaskObjective:
    """The loss of mask classification.

    Attributes:
        terms: unweighted terms of the final head in the latest forward pass; a share of the batch, as the loss.
    """

    def __init__(self, network: Any) -> None:
        self.num_queries: int = network.config.decoder_config.num_queries
        self.network, self.criterion = network, network.criterion
        self.terms: dict[str, Tensor] = {}
        self.criterion.register_forward_hook(self._remember)

    def _remember(self, _module: Any, _inputs: Any, terms: dict[str, Tensor]) -> None:
        self.terms = {name: terms[name].detach() for name in TERMS}

    def divisor(self, batches: Sequence[Batch]) -> LossNormalizer:
        """Counts the targets of all micro-batches of a step, over all processes."""
        labels = [image for batch in batches for image in batch["class_labels"]]
        return self.criterion.compute_normalizer(labels, self.num_queries)

    def loss(self, model: Any, batch: Batch, divisor: LossNormalizer, device: torch.device) -> Tensor:
        """This micro-batch's share of the loss; `model` may be wrapped.

        The criterion is called outside of the wrapper: where it raises, because predictions are not finite, a wrapper
        left in the middle of its forward pass would wait for the other processes in the next one.
        """
        valid = batch.get("valid_mask")
        predicted = model(
            pixel_values=batch["pixel_values"].to(device, non_blocking=True), output_auxiliary_logits=True
        )
        terms: dict[str, Tensor] = self.network.get_loss_dict(
            predicted.masks_queries_logits,
            predicted.class_queries_logits,
            mask_labels=[masks.to(device, non_blocking=True) for masks in batch["mask_labels"]],
            class_labels=[labels.to(device, non_blocking=True) for labels in batch["class_labels"]],
            auxiliary_logits=predicted.auxiliary_logits,
            normalizer=divisor,
            valid_mask=None if valid is None else valid.to(device, non_blocking=True),
        )
        return torch.stack(list(terms.values())).sum()


class PixelObjective:
    """The cross entropy of the per-pixel baselines, over the labelled pixels."""

    terms: dict[str, Tensor] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def divisor(self, batches: Sequence[Batch]) -> float:
        """Labelled pixels of all micro-batches of a step, the mean over all processes."""
        count = torch.stack([(batch["labels"] != 255).sum() for batch in batches]).sum().to(self.device)
        world = 1
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            world = distributed.get_world_size()
        return max(1.0, float(count)) / world

    def loss(self, model: Any, batch: Batch, divisor: float, device: torch.device) -> Tensor:
        """This micro-batch's share of the loss; `model` may be wrapped."""
        labels = batch["labels"].to(device, non_blocking=True)
        mean = model(pixel_values=batch["pixel_values"].to(device, non_blocking=True), labels=labels).loss
        return mean * ((labels != 255).sum().clamp(min=1) / divisor)


def build_objective(network: Any, device: torch.device) -> MaskObjective | PixelObjective:
    """The objective of a network."""
    return PixelObjective(device) if is_per_pixel(network) else MaskObjective(network)
