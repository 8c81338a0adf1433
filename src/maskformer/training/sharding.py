"""Weights, gradients and the optimizer's state in shards, one per process (FSDP2, torch's `fully_shard`).

Each layer of the transformers and each block of the backbone is gathered when it runs, all else with the network.
What is written to disk is whole, so that any number of processes, sharded or not, goes on from it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: Any, device: torch.device) -> None:
    """Cuts the parameters, in place, over all processes. Optimizers are built after it."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    layers = [module for module in network.modules() if type(module).__name__ in network._no_split_modules]
    for module in [*layers, network]:
        fully_shard(module, mesh=mesh)
    # Nothing is done in place on what a network gives.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)


def whole(value: Any) -> Any:
    """A tensor, or dictionaries and lists of them, with the whole tensor in the place of each shard, on the CPU.

    Where there are shards, every process must call it.
    """
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if isinstance(value, dict):
        return {name: whole(entry) for name, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, as `like` is: this process's shard of it, or itself."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def restore_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Loads a whole state, in shards where the parameters are."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            entries.update({name: cut_like(value, parameter) for name, value in entries.items()})


def unsharded(network: Any, weights: dict[str, Any]) -> nn.Module:
    """A whole network of the same kind with these weights, where `network` is: to be evaluated and saved."""
    # fully_shard has put a class of its own in front of the network's
    kind: Any = next(base for base in type(network).__mro__ if not base.__name__.startswith("FSDP"))
    copy = kind(network.config)
    copy.load_state_dict(whole(weights))
    return copy.to(network.device)
