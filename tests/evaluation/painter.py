"""A network that reads colours, and pictures coloured for it: predictions near the truth without any training.

The colour of a pixel says class and slot; query q = class * SLOTS + slot looks for its colour. Pictures are noisy, some
segments lie about their class, and masks are at stride 4, so results are good, but not perfect.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as masks
from torch import Tensor, nn

from maskformer.data.scenes import CLASSES, LABELS, STUFF_IDS, draw_scene
from maskformer.inference import Segmenter
from maskformer.modeling.outputs import MaskFormerForInstanceSegmentationOutput
from maskformer.processing.image_processor import MaskFormerImageProcessor
from maskformer.visualization import id2rgb

SLOTS = 4
CATEGORY_IDS = [10 + 3 * label for label in range(len(CLASSES))]  # in the files, ids are not label ids


def color(label: int, slot: int) -> tuple[int, int, int]:
    return 15 + 17 * label, 20 + 70 * slot, 240 - 16 * label


class Painter(nn.Module):
    """Looks like a MaskFormer from the outside. `sure` scales the class logits; 0 is an untrained head.

    `lean` is added to the logit of the first class.
    """

    def __init__(self, labels: dict[int, str] | None = None, sure: float = 8.0, lean: float = 0.0) -> None:
        super().__init__()
        labels = dict(LABELS) if labels is None else labels
        self.config = SimpleNamespace(id2label=labels, model_type="maskformer", stuff_class_ids=None)
        colors = [color(label, slot) for label in range(len(CLASSES)) for slot in range(SLOTS)]
        self.colors = nn.Parameter(torch.tensor(colors).float() / 255)  # [Q, 3]
        self.sure, self.lean = sure, lean
        names = [CLASSES[number].name for number in range(len(CLASSES))]
        place = {name: label for label, name in labels.items()}
        self.classes = [place.get(names[query // SLOTS], 0) for query in range(len(colors))]

    def forward(self, pixel_values: Tensor) -> MaskFormerForInstanceSegmentationOutput:
        pixels = nn.functional.avg_pool2d(pixel_values, 4)  # [B, 3, h, w]
        apart = (pixels[:, None] - self.colors[None, :, :, None, None]).abs().sum(2)  # [B, Q, h, w]
        logits = torch.zeros(len(pixels), len(self.colors), len(self.config.id2label) + 1)
        areas = (apart < 0.06).flatten(2).sum(2).float()  # [B, Q]
        for query, label in enumerate(self.classes):
            logits[:, query, label] = self.sure * areas[:, query].clamp(max=20) / 20
            logits[:, query, -1] = self.sure * (areas[:, query] < 3)
        logits[..., 0] += self.lean
        return MaskFormerForInstanceSegmentationOutput(
            class_queries_logits=logits, masks_queries_logits=200 * (0.06 - apart)
        )


def painter_segmenter(task: str = "panoptic", **options) -> Segmenter:
    processor = MaskFormerImageProcessor(do_resize=False, size_divisor=0, pad_size_divisor=32, image_mean=[0.0] * 3,
                                         image_std=[1.0] * 3, label_ids_to_fuse=STUFF_IDS)  # fmt: skip
    return Segmenter(Painter(**options), processor, task)


def write_folder(root: Path, count: int = 8, size: tuple[int, int] = (96, 128)) -> Path:
    """A COCO panoptic data set (with void, crowds, tiny and absent classes) and the same as COCO instances."""
    rng = np.random.default_rng(3)
    for folder in ("annotations/panoptic_val2017", "val2017"):
        (root / folder).mkdir(parents=True)
    categories = [
        {"id": number, "name": entry.name, "isthing": int(entry.isthing)}
        for number, entry in zip(CATEGORY_IDS, CLASSES, strict=True)
    ]
    images, panoptic, instances = [], [], []
    for number in range(count):
        height, width = (size, size[::-1], (size[0], size[0]))[number % 3]
        image_id = 900 - 7 * number
        scene = draw_scene(number, (height, width))
        picture, ids, infos = np.zeros((height, width, 3)), np.zeros((height, width), np.int64), []
        slots: dict[int, int] = {}
        for segment in scene.segments:
            label, mask = segment["category_id"], scene.segmentation == segment["id"]
            if label == 9:
                continue  # no boats: void, painted black
            slots[label] = slots.get(label, -1) + 1
            seen = label if rng.random() < 0.9 else (label + 1 + (label == 8)) % len(CLASSES)  # a lie
            picture[mask] = color(seen, slots[label] % SLOTS)
            if rng.random() < 0.1:
                continue  # void, though it is painted
            value = 1000 * segment["id"] + 7
            ids[mask] = value
            crowd = int(segment["isthing"] and rng.random() < 0.2)
            info = {"id": value, "category_id": CATEGORY_IDS[label], "iscrowd": crowd, "area": int(mask.sum())}
            infos.append({**info, "bbox": list(segment["bbox"])})
            if segment["isthing"]:
                runs = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
                shape = {"size": runs["size"], "counts": runs["counts"].decode()}
                entry = {"id": len(instances) + 1, "image_id": image_id, "segmentation": shape, "iscrowd": crowd}
                entry |= {"category_id": CATEGORY_IDS[label], "bbox": list(segment["bbox"])}
                instances.append({**entry, "area": 3.7 * float(mask.sum())})  # the file's word counts
        picture += rng.normal(0, 4, picture.shape)
        name = f"{image_id:06}"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "val2017" / f"{name}.bmp")
        Image.fromarray(id2rgb(ids)).save(root / "annotations/panoptic_val2017" / f"{name}.png")
        images.append({"id": image_id, "file_name": f"{name}.bmp", "height": height, "width": width})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
    common = {"info": {}, "images": images, "categories": categories}
    for kind, entries in (("panoptic", panoptic), ("instances", instances)):
        things = [entry for entry in categories if entry["isthing"] or kind == "panoptic"]
        content = {**common, "categories": things, "annotations": entries}
        (root / f"annotations/{kind}_val2017.json").write_text(json.dumps(content))
    return root
