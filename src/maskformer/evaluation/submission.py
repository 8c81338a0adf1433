"""The files that benchmark servers take: COCO panoptic (PNG folder and JSON), COCO results (JSON), label PNGs.

Image and category ids are those of the data set's annotation. C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskformer.data.dataset import SegmentationDataset
from maskformer.results import Segmentation, Task, write_whole


class AnnotationFile:
    """What COCO's annotation file says that samples do not: image ids, and areas as the publisher measured them.

    Other formats have neither; there, an image is called by its file, and areas are counted.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.is_coco = dataset.layout in ("coco-instances", "coco-panoptic")

    def image_id(self, index: int) -> int | str:
        """Of the image at that place of the data set."""
        if self.is_coco:
            return self.dataset.records[index][-1]
        stem = Path(self.dataset.path(index)).stem
        return int(stem) if stem.isdecimal() else stem

    def region_areas(self, index: int, counted: NDArray[np.int64]) -> list[float]:
        """Of the regions of the sample, whose pixels were counted."""
        if self.dataset.layout != "coco-instances":
            return counted.astype(float).tolist()
        stated = [area for *_, area in self.dataset.records[index][3]]
        return [float(area if said is None else said) for said, area in zip(stated, counted, strict=True)]


class Submission:
    """Writes `submission/` below a directory: pictures as they come, the JSON file at the end.

    Args:
        directory: where to.
        task: decides on the form.
        annotations: has the file names, image ids and category ids.
        table: int64 [C]: the data's label id of each of the model's.

    Raises:
        ValueError: there is no directory, or two images have one name.
    """

    def __init__(
        self, directory: Path | None, task: Task, annotations: AnnotationFile, table: NDArray[np.int64]
    ) -> None:
        if directory is None:
            raise ValueError("submission files need a directory to be written to")
        self.directory, self.task, self.annotations = directory / "submission", task, annotations
        originals = [category.original_id for category in annotations.dataset.categories]
        self.category_ids = {label: originals[place] for label, place in enumerate(table.tolist()) if place >= 0}
        self.pictures = self.directory / {"panoptic": "panoptic", "semantic": "labels", "instance": ""}[task]
        places: dict[int | str, int] = {}
        for index in range(len(annotations.dataset)):
            name = self._name(index)
            if (first := places.setdefault(name, index)) != index:
                paths = " and ".join(annotations.dataset.path(place) for place in (first, index))
                raise ValueError(f"{paths} are both {name!r} in a submission: give pictures names of their own")
        self.pictures.mkdir(parents=True, exist_ok=True)

    def _name(self, index: int) -> int | str:
        """What an image is called in the submission."""
        if self.task == "instance":
            return self.annotations.image_id(index)
        dataset = self.annotations.dataset
        path = Path(dataset.target_path(index) if self.task == "panoptic" else dataset.path(index))
        return path.with_suffix(".png").name

    def add(self, result: Segmentation, index: int) -> list[dict[str, Any]]:
        """Write the picture of an image, and return its entries for the JSON file."""
        image_id = self.annotations.image_id(index)
        if self.task == "instance":
            return result.to_coco(image_id, self.category_ids, compressed=True)
        name = str(self._name(index))
        if self.task == "panoptic":
            picture, annotation = result.to_panoptic(image_id, self.category_ids)
            entries = [annotation | {"file_name": name}]
        else:
            values = np.array([self.category_ids[label] for label in sorted(self.category_ids)])
            values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
            picture, entries = Image.fromarray(values[result.segmentation]), []
        write_whole(self.pictures / name, lambda path: picture.save(path, "PNG"))
        return entries

    def finish(self, records: Iterable[dict[str, Any]]) -> None:
        """Write the JSON file from the records of all images, one at a time."""
        if self.task == "semantic":
            return

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                start, end = ('{"annotations": [', "]}") if self.task == "panoptic" else ("[", "]")
                file.write(start)
                for number, entry in enumerate(entry for record in records for entry in record["submission"]):
                    file.write((",\n" if number else "\n") + json.dumps(entry))
                file.write(end)

        write_whole(self.directory / ("panoptic.json" if self.task == "panoptic" else "results.json"), write)
