"""A folder of annotated pictures to learn on: drawn scenes, written as COCO panoptic data are.

annotations/panoptic_train.json, annotations/panoptic_train/*.png, train/*.jpg, and the same for val
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from maskformer.data.scene_set import FIRST_SEEDS
from maskformer.data.scenes import CLASSES, draw_scene

VALIDATION_SHARE = 5  # one picture for validation for so many to train on


def write_example(directory: str | Path, num_images: int = 20, size: tuple[int, int] = (192, 256)) -> Path:
    """Draw `num_images` pictures to train on, a fifth as many for validation, and their panoptic annotations.

    Source: docs/index.md#train-on-your-own-pictures.

    Args:
        size: (height, width) of every picture, in pixels.

    Returns:
        The directory.

    Raises:
        ValueError: the directory is a file or holds something already, or no picture is asked for.

    Examples:
        >>> root = write_example("pictures", num_images=2, size=(48, 64))
        >>> sorted(path.name for path in root.iterdir())
        ['annotations', 'train', 'val']
    """
    root = Path(directory)
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file, expected a directory that is empty or does not exist yet")
    if num_images < 1:
        raise ValueError(f"{num_images} pictures are asked for, expected at least 1")
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty: give a directory that is, or that does not exist yet")
    root.parent.mkdir(parents=True, exist_ok=True)
    # Half of an example is none. A directory that is there stays: somebody may be in it, or another disk.
    with tempfile.TemporaryDirectory(prefix=".", dir=root if root.is_dir() else root.parent) as part:
        for split, count in (("train", num_images), ("val", -(-num_images // VALIDATION_SHARE))):
            _write_split(Path(part), split, count, size)
        root.mkdir(exist_ok=True)
        for path in Path(part).iterdir():
            path.rename(root / path.name)
    return root


def _write_split(root: Path, split: str, count: int, size: tuple[int, int]) -> None:
    annotations = root / "annotations"
    for folder in (root / split, annotations / f"panoptic_{split}"):
        folder.mkdir(parents=True)
    images, entries = [], []
    for number in range(1, count + 1):
        scene, name = draw_scene(FIRST_SEEDS[split] + number, size), f"{number:06}"
        Image.fromarray(scene.image).save(root / split / f"{name}.jpg", quality=95)
        colors = np.stack([scene.segmentation >> shift & 255 for shift in (0, 8, 16)], axis=-1)  # [H, W, 3]
        Image.fromarray(colors.astype(np.uint8)).save(annotations / f"panoptic_{split}" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        # In the file, categories count from 1 and are what says which of them are things.
        infos = [{**segment, "category_id": segment["category_id"] + 1} for segment in scene.segments]
        for info in infos:
            del info["isthing"]
        entries.append({"image_id": number, "file_name": f"{name}.png", "segments_info": infos})
    categories = [
        {"id": number, "name": entry.name, "isthing": int(entry.isthing), "color": entry.color}
        for number, entry in enumerate(CLASSES, start=1)
    ]
    content = {"images": images, "annotations": entries, "categories": categories}
    (annotations / f"panoptic_{split}.json").write_text(json.dumps(content), encoding="utf-8")
