"""One process of the two-process test; started as `python distributed_worker.py RANK WORLD_SIZE INIT_FILE OUT`.

Every scenario has four images; the parameters are shared by all of them, like a network's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from maskformer.losses import MaskFormerHungarianMatcher, MaskFormerLoss

QUERIES, LABELS = 6, 5
CLASS_WEIGHTS = [0.5, 1.0, 2.0, 3.0, 0.25]
SCENARIOS = {
    "different numbers": (2, 3, 1, 4),
    "none on the last rank": (3, 1, 0, 0),
    "fewer targets than ranks": (0, 1, 0, 0),
    "none at all": (0, 0, 0, 0),
}


def results(counts: tuple[int, ...], weighted: bool, micro_batches: int, rank: int, world_size: int) -> list:
    """The three losses and the gradients of the parameters for this rank's share of the images."""
    generator = torch.Generator().manual_seed(7)
    masks = torch.randn(4, QUERIES, 4, 6, generator=generator)
    classes = torch.randn(4, QUERIES, LABELS + 1, generator=generator)
    mask_labels = [torch.rand(n, 16, 24, generator=generator) > 0.5 for n in counts]
    class_labels = [torch.randint(LABELS, (n,), generator=generator) for n in counts]
    scale, shift = torch.ones(QUERIES, 1, 1, requires_grad=True), torch.zeros(QUERIES, LABELS + 1, requires_grad=True)

    criterion = MaskFormerLoss(
        LABELS, MaskFormerHungarianMatcher(1.0, 20.0, 1.0), {}, 0.1, CLASS_WEIGHTS if weighted else None
    )
    share, images = 4 // world_size, 4 // world_size // micro_batches
    first = rank * share
    parts = [slice(start, start + images) for start in range(first, first + share, images)]
    normalizer = None
    if micro_batches > 1:
        normalizer = criterion.compute_normalizer(class_labels[first : first + share], QUERIES)
    total = torch.zeros(3)
    for part in parts:
        losses = criterion(
            masks[part] * scale, classes[part] + shift, mask_labels[part], class_labels[part], normalizer=normalizer
        )
        sum(losses.values()).backward()
        total += torch.stack(list(losses.values())).detach()
    return [total, scale.grad, shift.grad]


def main(rank: int, world_size: int, init_file: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=Path(init_file).as_uri(), rank=rank, world_size=world_size)
    averages = {}
    for name, counts in SCENARIOS.items():
        for weighted in (False, True):
            for micro_batches in (1, 2):
                values = results(counts, weighted, micro_batches, rank, world_size)
                for value in values:  # what DistributedDataParallel does to gradients
                    distributed.all_reduce(value)
                    value /= world_size
                averages[name, weighted, micro_batches] = values
    if rank == 0:
        torch.save(averages, out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
