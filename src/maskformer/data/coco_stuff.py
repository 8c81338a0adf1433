"""COCO-Stuff 10k as its publishers ship it, and as label PNGs: 171 classes (80 of things), semantic only.

    images/*.jpg, annotations/*.mat, imageLists/{train,test}.txt                                    the publishers'
    images_detectron2/{train,test}/*.jpg, annotations_detectron2/{train,test}/*.png         0 to 170, 255 ignored

In version 1.1 the map `S` of a .mat file holds 0 (unlabeled) and 1 to 182, of which eleven do not occur. In version 1.0
the files are HDF5 and hold 1 (unlabeled) and 2 to 172, the classes without gaps. The test list is our "val".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.data.classes import ClassList, packaged_classes
from maskformer.data.folders import Layout, Splits, pair_by_name, paired_splits
from maskformer.data.label_maps import LabelMaps
from maskformer.data.sample import Task

_HDF5 = b"MATLAB 7.3"


class StuffMatrices(LabelMaps):
    """The .mat files; values as in version 1.1."""

    def read_values(self, record: tuple[Any, ...]) -> NDArray[Any]:
        from scipy.io import loadmat

        path = Path(record[1])
        try:
            with path.open("rb") as file:
                is_hdf5 = file.read(len(_HDF5)) == _HDF5
            if not is_hdf5:
                return np.asarray(loadmat(path, variable_names=["S"])["S"]).astype(np.int32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} cannot be read as an annotation of COCO-Stuff ({error}); is it cut off?"
            raise ValueError(message) from error
        try:
            import h5py  # pyright: ignore[reportMissingImports] (in no extra: only these old files need it)
        except ImportError as error:
            raise ImportError(f"{path} is a file of COCO-Stuff 1.0, which needs h5py: pip install h5py") from error
        with h5py.File(path) as file:
            values = np.asarray(file["S"]).T.astype(np.int32)  # [H, W]: HDF5 has the axes the other way round
        return np.array([0, 0, *self.classes.label_ids], np.int32)[values]


def _find(root: Path) -> Splits:
    lists = {split: root / "imageLists" / f"{name}.txt" for split, name in (("train", "train"), ("val", "test"))}
    if next((root / "annotations").glob("*.mat"), None):
        return {split: path for split, path in lists.items() if path.is_file()}
    splits = paired_splits(root / "images_detectron2", root / "annotations_detectron2", "*.png")
    return {"val" if name == "test" else name: source for name, source in splits.items()}


def _read(root: Path, split: str, source: Path | tuple[Path, Path], task: Task | None) -> LabelMaps:
    categories = packaged_classes("coco-stuff")
    if isinstance(source, tuple):
        categories = tuple(category._replace(original_id=place) for place, category in enumerate(categories))
        classes = ClassList(categories, frozenset({255}), "COCO-Stuff")
        return LabelMaps(root, split, classes, *pair_by_name(*source), task)
    names = source.read_text(encoding="utf-8").split()
    pairs = [(str(root / "images" / f"{name}.jpg"), str(root / "annotations" / f"{name}.mat")) for name in names]
    return StuffMatrices(root, split, ClassList(categories, frozenset({0}), "COCO-Stuff"), pairs, (), task)


LAYOUT = Layout("coco-stuff", _find, _read)
