"""From micro-batches to a loss: what is handed to the network, and divided by what.

Both kinds of network have one divisor for all micro-batches and processes of a step, so that the loss and its gradient
do not depend on how the batch was cut. The loss of a process is scaled such that its *mean* over the processes is the
loss of the batch, because that is what DistributedDataParallel makes of gradients. B micro-batch, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskformer.losses import LossNormalizer
from maskformer.modeling.per_pixel import labelled_weight
from maskformer.training.network import is_per_pixel

Batch = dict[str, Any]


class MaskObjective:
    """The loss of mask classification.

    Attributes:
        names: of the terms.
        terms: unweighted terms of the final head in the latest forward pass; a share of the batch, as the loss.
    """

    names = ("loss_cross_entropy", "loss_mask", "loss_dice")

    def __init__(self, network: Any) -> None:
        self.network = network
        self.terms: dict[str, Tensor] = {}
        network.criterion.register_forward_hook(self._remember)

    def _remember(self, _module: Any, _inputs: Any, terms: dict[str, Tensor]) -> None:
        self.terms = {name: terms[name].detach() for name in self.names}

    def divisor(self, batches: Sequence[Batch]) -> LossNormalizer:
        """Counts the targets of all micro-batches of a step, over all processes."""
        labels = [image for batch in batches for image in batch["class_labels"]]
        return self.network.criterion.compute_normalizer(labels, self.network.config.decoder_config.num_queries)

    def loss(self, model: Any, batch: Batch, divisor: LossNormalizer) -> Tensor:
        """This micro-batch's share of the loss; `model` may be wrapped.

        The criterion is called outside of the wrapper: where it raises, because predictions are not finite, a wrapper
        left in the middle of its forward pass would wait for the other processes in the next one.
        """
        predicted = model(pixel_values=batch["pixel_values"], output_auxiliary_logits=True)
        terms: dict[str, Tensor] = self.network.get_loss_dict(
            predicted.masks_queries_logits,
            predicted.class_queries_logits,
            mask_labels=batch["mask_labels"],
            class_labels=batch["class_labels"],
            auxiliary_logits=predicted.auxiliary_logits,
            normalizer=divisor,
            valid_mask=batch.get("valid_mask"),
        )
        return torch.stack(list(terms.values())).sum()


class PixelObjective:
    """The cross entropy of the per-pixel baselines, over the labelled pixels."""

    names = ()
    terms: dict[str, Tensor] = {}

    def __init__(self, network: Any, accelerator: Any) -> None:
        self.config, self.accelerator = network.config, accelerator

    def divisor(self, batches: Sequence[Batch]) -> float:
        """Weight of the labelled pixels of all micro-batches of a step, the mean over all processes."""
        weight = torch.stack([self._weight(batch) for batch in batches]).sum().to(self.accelerator.device)
        return (float(self.accelerator.reduce(weight, "sum")) or 1.0) / self.accelerator.num_processes

    def loss(self, model: Any, batch: Batch, divisor: float) -> Tensor:
        """This micro-batch's share of the loss; `model` may be wrapped."""
        return model(**batch).loss * (self._weight(batch) / divisor)

    def _weight(self, batch: Batch) -> Tensor:
        return labelled_weight(batch["labels"], self.config.num_labels, self.config.class_weights)


def build_objective(network: Any, accelerator: Any) -> MaskObjective | PixelObjective:
    """The objective of a network."""
    return PixelObjective(network, accelerator) if is_per_pixel(network) else MaskObjective(network)
