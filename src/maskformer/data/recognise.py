"""Which format is this directory, and open it: the one door to every data set."""

from __future__ import annotations

from pathlib import Path

from maskformer.data import ade20k, cityscapes, coco_instances, coco_panoptic, coco_stuff, hub, label_maps, mapillary
from maskformer.data.dataset import SegmentationDataset
from maskformer.data.folders import Layout, Splits, split_of
from maskformer.data.sample import Task
from maskformer.explanations import explained

# In the order of asking: a format with marks of its own before one that would take its folders for something simpler.
LAYOUTS: tuple[Layout, ...] = (
    *(cityscapes.LAYOUT, mapillary.LAYOUT, coco_stuff.LAYOUT, hub.LAYOUT, coco_panoptic.LAYOUT),
    *(ade20k.FULL_LAYOUT, ade20k.LAYOUT, coco_instances.LAYOUT, label_maps.LAYOUT),
)


def recognise(root: str | Path) -> dict[str, tuple[Layout, Splits]]:
    """By name every format that fits a directory, the most telling first, with its splits.

    Raises:
        ValueError: none fits, or there is no such directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a directory: give the one that holds images and annotations")
    found = {layout.name: (layout, splits) for layout in LAYOUTS if (splits := layout.find(root))}
    if not found:
        inside = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        better = next((name for name in inside if any(layout.find(root / name) for layout in LAYOUTS)), None)
        holds = f"it holds the folders {', '.join(inside[:8]) or '(none)'}"
        hint = f"did you mean {root / better}?" if better else holds
        raise ValueError(f"{root} has none of the formats {', '.join(entry.name for entry in LAYOUTS)}; {hint}")
    return found


@explained
def open_dataset(
    source: str | Path, split: str = "train", layout: str | None = None, task: Task | None = None
) -> SegmentationDataset:
    """One split of a data set.

    Source: docs/data.md#formats.

    Args:
        source: a directory, "hub:user/name", or "scenes" ("scenes:500" for that many).
        split: "train", "val" or "test".
        layout: the name of the format, where a directory has several; by default the first that allows the task.
        task: by default the one the annotation is made for.

    Raises:
        ValueError: nothing fits, there is no such split, or the annotation cannot be read.
        ImportError: a package that reads it is not installed.

    Examples:
        >>> dataset = open_dataset("scenes:10", "train")
        >>> len(dataset), dataset.task, [category.name for category in dataset.categories][:3]
        (10, 'panoptic', ['sky', 'mountain', 'grass'])
    """
    kind, _, rest = str(source).partition(":")
    if kind == "scenes" and not Path(source).exists():
        from maskformer.data.scene_set import FIRST_SEEDS, SceneDataset

        if split not in FIRST_SEEDS:
            raise ValueError(f"{source} has no split {split!r}, only {', '.join(FIRST_SEEDS)}")
        if rest and not rest.isdecimal():
            raise ValueError(f"{source} has no number of scenes after the colon, expected for example scenes:500")
        return SceneDataset(int(rest or (1000 if split == "train" else 100)), split, task=task)
    if kind == "hub" and rest:
        return hub.open_hub_dataset(rest, split, task)
    root, found = Path(source), recognise(source)
    names = [name for name in found if layout in (None, name)]
    if not names:
        raise ValueError(f"{source} is no {layout}, but {', '.join(found)}")
    refusals: list[ValueError] = []
    for name in names if task else names[:1]:
        reader, splits = found[name]
        try:
            if split not in splits:
                alike = " and ".join(each for each in splits if split_of(each) == split)
                several = f"has {alike} for its split {split!r}: name one as the split, or move what is not meant away"
                only = f"has no split {split!r}, only {', '.join(splits)}"
                raise ValueError(f"{root} ({name}) {several if alike else only}")
            dataset = reader.read(root, split, splits[split], task)
        except ValueError as error:
            refusals.append(error)
            continue
        dataset.layout = name
        return dataset
    raise refusals[0]
