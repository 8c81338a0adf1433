"""A data set of the Hugging Face library `datasets` with a column of images and one of masks.

It is opened from memory (`HubDataset`), from a directory that `save_to_disk` wrote, or by its name ("hub:user/name").
A mask of one channel holds a class per pixel; of three, the class in red and the instance in green (0: none), as in the
examples of transformers. The class list is `classes.txt`, `classes.json` or `id2label.json`, beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskformer.data.classes import CLASS_FILES, USUALLY_IGNORED, ClassList, read_classes
from maskformer.data.dataset import SegmentationDataset, read_picture
from maskformer.data.folders import Layout, Splits, by_split, split_of
from maskformer.data.label_maps import class_list_of
from maskformer.data.sample import Region, Sample, Task, index_map

IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture")
MASK_COLUMNS = ("annotation", "label", "mask", "labels", "masks", "semantic_mask", "segmentation", "segmentation_mask")


class HubDataset(SegmentationDataset):
    """Reads the rows of a `datasets.Dataset`.

    Args:
        rows: the data set, of one split.
        classes: what the values of the masks mean.
        name: what to call it in messages.
        image_column: by default the column with one of the usual names.
        mask_column: likewise.

    Raises:
        ValueError: there are no such columns.
    """

    layout = "hub"
    tasks = ("semantic", "panoptic", "instance")

    def __init__(
        self,
        rows: Any,
        classes: ClassList,
        name: str = "the data set",
        split: str = "train",
        task: Task | None = None,
        image_column: str | None = None,
        mask_column: str | None = None,
    ) -> None:
        columns = [
            next((column for column in ((given,) if given else usual) if column in rows.column_names), None)
            for given, usual in ((image_column, IMAGE_COLUMNS), (mask_column, MASK_COLUMNS))
        ]
        if None in columns:
            raise ValueError(
                f"{name} has the columns {', '.join(rows.column_names)}, expected one of images and one of masks: "
                "name them with image_column and mask_column"
            )
        super().__init__(name, split, classes, (), (), task)
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> str:
        return f"{self.root}[{index}]"

    def target_path(self, index: int) -> str:
        return f"{self.root}[{index}] ({self.columns[1]})"

    def read(self, index: int) -> Sample:
        row = self.rows[index]
        image, values = read_picture(row[self.columns[0]]), np.asarray(row[self.columns[1]])
        region_of = self.classes.region
        if values.ndim == 3:
            values, region_of = (values[..., 0].astype(np.int32) << 8) + values[..., 1], self._region_of_pair
        return Sample(image, *index_map(values, region_of), path=self.path(index))

    def _region_of_pair(self, value: int) -> Region:
        # Such masks do not say which classes are things: those are whose pixels belong to instances.
        return self.classes.region(value >> 8)._replace(isthing=value & 255 > 0)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data sets of the hub need datasets: pip install 'maskformer[data]'") from error
    return datasets


def _find(root: Path) -> Splits:
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        return {"train": None}
    inside = [path.parent.name for path in sorted(root.glob("*/state.json"))]
    return by_split({name: name for name in inside}) if (root / "dataset_dict.json").is_file() else {}


def _read(root: Path, split: str, source: str | None, task: Task | None) -> HubDataset:
    classes = class_list_of(root)
    if classes is None:
        raise ValueError(f"{root} has no class list: write the names into {root / 'classes.txt'}, one per line")
    rows = _library().load_from_disk(str(root))
    return HubDataset(rows if source is None else rows[source], classes, str(root), split, task)


def open_hub_dataset(name: str, split: str = "train", task: Task | None = None) -> HubDataset:
    """The split of a data set on the hub, "user/name" or "user/name:configuration".

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: its repository has no class list, or it has no such columns.
    """
    from huggingface_hub import file_exists, hf_hub_download

    library, (repository, _, configuration) = _library(), name.partition(":")
    file = next((file for file in CLASS_FILES if file_exists(repository, file, repo_type="dataset")), None)
    if file is None:
        remedy = "open it with datasets and give it to HubDataset with classes"
        raise ValueError(f"{repository} has no class list; {remedy}")
    classes = read_classes(Path(hf_hub_download(repository, file, repo_type="dataset")), USUALLY_IGNORED)
    splits = library.get_dataset_split_names(repository, configuration or None)
    found = next((given for given in splits if split_of(given) == split), split)
    rows = library.load_dataset(repository, configuration or None, split=found)
    return HubDataset(rows, classes, repository, split, task)


LAYOUT = Layout("hub", _find, _read)
