"""An exponential moving average of the weights: what is evaluated and saved for use, while the weights go on moving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskformer.training.sharding import cut_like


class AveragedWeights:
    """The average of everything in a network's state; integers (counters) are copied.

    Args:
        network: whose state to average.
        decay: share of the old average in each update; smaller in the first steps, when there is little to average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimizer."""
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (self.updates + 9))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, share)
            else:
                self.values[name].copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network has the averaged weights."""
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.values)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, value in state["values"].items():
            self.values[name].copy_(cut_like(value, self.values[name]))
