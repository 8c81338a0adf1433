"""Drawn scenes as a data set: exact panoptic annotation without a file. H W image."""

from __future__ import annotations

from maskformer.data.classes import ClassList
from maskformer.data.dataset import SegmentationDataset
from maskformer.data.sample import Sample, Task, index_map
from maskformer.data.scenes import CLASSES, draw_scene

# The demo judges models on the scenes from 10,000,000 on: neither split reaches them.
FIRST_SEEDS = {"train": 0, "val": 5_000_000, "test": 9_000_000}


class SceneDataset(SegmentationDataset):
    """Scenes of consecutive seeds, drawn when they are asked for.

    Args:
        count: scenes in the set.
        first_seed: seed of the first; by default one of the split, far from the others and from those of the demo.
        size: (H, W) of every scene.
    """

    layout = "scenes"
    tasks = ("panoptic", "semantic", "instance")

    def __init__(
        self,
        count: int,
        split: str = "train",
        first_seed: int | None = None,
        size: tuple[int, int] = (192, 256),
        task: Task | None = None,
    ) -> None:
        super().__init__("scenes", split, ClassList(CLASSES), (), (), task)
        self.first_seed = FIRST_SEEDS[split] if first_seed is None else first_seed
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        return f"scene {self.first_seed + index}"

    def target_path(self, index: int) -> str:
        return self.path(index)

    def sized(self, size: tuple[int, int]) -> SceneDataset:
        """The same scenes, drawn at (H, W)."""
        return SceneDataset(self.count, self.split, self.first_seed, size, self.task)

    def read(self, index: int) -> Sample:
        scene = draw_scene(self.first_seed + index % self.count, self.size)
        classes = {segment["id"]: segment["category_id"] for segment in scene.segments}
        targets = index_map(scene.segmentation, lambda value: self.classes.region(classes[value]))
        return Sample(scene.image, *targets, path=self.path(index))
