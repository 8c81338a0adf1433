"""Which image comes when, and how images become micro-batches.

Sample n of the whole training is image `permutation(epoch)[n mod N]`, augmented by a generator of its own: everything
follows from the seed and n, in any number of processes, workers and micro-batches, and after any restart. A step takes
the next `batch_size` samples; each process and micro-batch takes its share of them. The first steps may see smaller
pictures.

B micro-batch, N images of the data set, H W image.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from maskformer.data.check import refuse_wrong_data
from maskformer.data.collate import Collate, strided
from maskformer.data.dataset import SegmentationDataset
from maskformer.data.recognise import open_dataset
from maskformer.data.sample import Sample
from maskformer.data.scene_set import SceneDataset
from maskformer.data.transforms import RandomFlip, TransformedDataset, paper_transforms, resize
from maskformer.evaluation.evaluate import class_table
from maskformer.training.config import TrainingConfig

_SCALES = (0.75, 0.875, 1.0, 1.125, 1.25)
_USUAL_SPLIT = TrainingConfig.model_fields["eval_split"].default  # which not all data have
_LARGEST_OWN_SIZE = 512  # of the shorter edge, where the pictures decide


@dataclass(frozen=True)
class Order:
    """The (index, draw) pairs of each micro-batch of one process, from a step on."""

    num_images: int
    config: TrainingConfig
    first_step: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.config.accumulation
        if self.config.batch_size % parts:
            raise ValueError(
                f"batch_size {self.config.batch_size} cannot be shared by {self.world} processes with "
                f"{self.config.accumulation} micro-batches each: make it a multiple of {parts}"
            )

    def __len__(self) -> int:
        return (self.config.steps - self.first_step) * self.config.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole, parts = self.config.batch_size, self.config.accumulation
        size = whole // (self.world * parts)
        for step in range(self.first_step, self.config.steps):
            for part in range(parts):
                start = step * whole + (part * self.world + self.rank) * size
                yield [(self._image(draw), draw) for draw in range(start, start + size)]

    def _image(self, draw: int) -> int:
        epoch, place = divmod(draw, self.num_images)
        return int(_shuffled(self.config.seed, epoch, self.num_images)[place]) if self.config.shuffle else place


@functools.lru_cache(maxsize=1)
def _shuffled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class PixelCollate:
    """As `Collate`, with one map of classes per image for the per-pixel baselines: `labels` [B, H, W].

    H and W are those of the targets, which may have a stride.
    """

    collate: Collate
    ignored: int  # label of pixels without a class

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = self.collate(samples)
        labels = torch.full_like(batch["pixel_mask"], self.ignored)
        for place, sample in enumerate(samples):
            labels[place, : sample.size[0], : sample.size[1]] = torch.from_numpy(sample.class_map(self.ignored))
        return {"pixel_values": batch["pixel_values"], "labels": strided(labels, self.collate.target_stride)}


def open_evaluation_set(config: TrainingConfig) -> SegmentationDataset | None:
    """What to evaluate on, or None if that is not wanted or there is nothing."""
    if not config.eval_every:
        return None
    try:
        # "scenes:500" counts training scenes
        is_drawn = config.data.startswith("scenes:") and not Path(config.data).exists()
        source = "scenes" if is_drawn else config.data
        return open_dataset(source, config.eval_split, config.format, config.task)
    except ValueError as error:
        if "no split" in str(error) and config.eval_split == _USUAL_SPLIT:
            return None
        raise


def check_val_set(config: TrainingConfig, dataset: SegmentationDataset) -> None:
    """Raises ValueError where an evaluation of what is learnt would fail, in the middle of the training."""
    evaluation_set = open_evaluation_set(config)
    if evaluation_set is None:
        return
    refuse_wrong_data(evaluation_set, config.check_images)
    first = range(len(evaluation_set))[: config.eval_images]
    if not any(region.is_target for index in first for region in evaluation_set[index].regions):
        raise ValueError(
            f"{dataset.root} has nothing to count in the first {len(first)} images of {evaluation_set.split}: give a "
            "larger --eval-images, or leave it out"
        )
    ours, theirs = list(dataset.id2label.values()), list(evaluation_set.id2label.values())
    try:
        class_table(dataset.id2label, theirs, False, dataset.stuff_class_ids if dataset.task == "instance" else ())
    except ValueError as error:
        odd = [name for name in [*theirs, *ours] if (name in ours) != (name in theirs)]
        raise ValueError(
            f"{dataset.root} has {len(ours)} classes in {dataset.split} and {len(theirs)} others in "
            f"{evaluation_set.split} ({repr(odd[0]) + ' is in one alone' if odd else 'a name occurs twice'}): write "
            "the same list into both, or train without evaluation, --eval-every 0"
        ) from error


def fit_sizes(config: TrainingConfig, dataset: SegmentationDataset) -> TrainingConfig:
    """The settings with the sizes that were left open: scales around the usual shorter edge of the pictures."""
    if config.min_sizes is not None and config.test_size is not None:
        return config
    looked_at = np.linspace(0, len(dataset) - 1, min(9, len(dataset))).round().astype(int)
    usual = min(int(np.median([min(dataset[int(index)].size) for index in looked_at])), _LARGEST_OWN_SIZE)
    sizes = config.min_sizes or [max(32, round(usual * scale)) for scale in _SCALES]
    return config.model_copy(update={"min_sizes": sizes, "test_size": config.test_size or max(32, usual)})


class _Draws(TransformedDataset):
    """The data set as the steps of a training see it: small pictures first, if that is wanted."""

    def __init__(self, dataset: SegmentationDataset, config: TrainingConfig) -> None:
        assert config.min_sizes is not None, "fit_sizes comes first"
        paper = paper_transforms(
            config.min_sizes,
            config.max_size,
            config.crop_size,
            config.crop_kind,
            config.single_category_max_area,
            config.distort_colors,
        )
        super().__init__(dataset, paper, config.seed)
        self.config = config
        self.small = dataset.sized(config.early_size) if isinstance(dataset, SceneDataset) else dataset

    def __getitem__(self, key: Any) -> Sample:
        (index, draw), config = key, self.config
        is_early = draw // config.batch_size < config.early_share * config.steps
        sample = (self.small if is_early else self.dataset)[index]
        transform = RandomFlip(chance=draw % 2) if config.augmentation == "mirror" else self.transform
        sample = transform(sample, np.random.default_rng([self.seed, draw, index]))
        shares = [wanted / edge for wanted, edge in zip(config.early_size, sample.size, strict=True)]
        if not is_early or min(shares) >= 1:
            return sample
        height, width = (max(1, round(edge * min(shares))) for edge in sample.size)
        return resize(sample, (height, width)).without_empty()


def build_loader(dataset: SegmentationDataset, config: TrainingConfig, collate: Any, order: Order) -> DataLoader[Any]:
    """All micro-batches of one process, in order."""
    draws: Any = _Draws(dataset, config)
    return DataLoader(
        draws,
        batch_sampler=order,  # pyright: ignore[reportArgumentType]  # pairs, where torch thinks of numbers
        collate_fn=collate,
        num_workers=config.workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, torchrun and service managers tell every process of the group to end, but only the training can save; it
    # ends its workers, and they end without it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
