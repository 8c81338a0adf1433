"""Memory beyond the model: what large pictures, many classes and many images may take. Each runs in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads its memory from Linux's /proc"),
]

PRELUDE = """
import sys
from pathlib import Path
import numpy as np
import torch
from painter import SLOTS, color, painter_segmenter, write_folder

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024  # MiB
"""

TILES = """
from maskformer.data.scenes import draw_scene
from maskformer.tiling import TiledSegmenter, tiles

scene = draw_scene(77, (4000, 6000))
colors, slots = np.zeros((len(scene.segments) + 1, 3), np.uint8), {}
for segment in scene.segments:
    label = segment["category_id"]
    slots[label] = slots.get(label, -1) + 1
    colors[segment["id"]] = color(label, slots[label] % SLOTS)
picture = colors[scene.segmentation]
del scene
segmenter = painter_segmenter(task := "semantic")
segmenter.predict(picture[:1024, :1024])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
tiled = TiledSegmenter(segmenter, 1024, 128).predict([picture])[0].segmentation
assert status("VmHWM") - before < 1500, (before, status("VmHWM"))
away = np.ones((4000, 6000), bool)
for place in tiles((4000, 6000), 1024, 128):
    away[max(place.top, 1) - 1 : place.top + 256 if place.row else 0] = False
    away[:, max(place.left, 1) - 1 : place.left + 256 if place.column else 0] = False
whole = segmenter.predict(picture)[0].segmentation
assert away.mean() > 0.5
assert (tiled == whole)[away].mean() > 0.99, (tiled == whole)[away].mean()
"""

MANY_CLASSES = """
from maskformer.data.classes import Category, ClassList
from maskformer.data.dataset import SegmentationDataset
from maskformer.data.sample import Sample, index_map
from maskformer.evaluation.evaluate import evaluate

CLASSES = 847

class Large(SegmentationDataset):
    def __len__(self):
        return 1

    def path(self, index):
        return str(index)

    target_path = path

    def read(self, index):
        rng = np.random.default_rng(index)
        labels = rng.integers(0, CLASSES, (20, 20)).repeat(100, 0).repeat(100, 1)
        planes, regions = index_map(labels, self.classes.region)
        return Sample(rng.integers(0, 256, (2000, 2000, 3), np.uint8), planes, regions)

dataset = Large("large", "val", ClassList(tuple(Category(f"class {n}", False, n) for n in range(CLASSES))), ())
segmenter = painter_segmenter("semantic", labels={n: f"class {n}" for n in range(CLASSES)})
segmenter.image_processor.do_resize = True
segmenter.image_processor.size = {"shortest_edge": 512, "longest_edge": 2048}
before = status("VmHWM")
result = evaluate(segmenter, dataset, "semantic")
assert result.metrics["mIoU"] is not None
assert status("VmHWM") - before < 2000, (before, status("VmHWM"))
"""

MANY_IMAGES = """
from maskformer.data.recognise import open_dataset
from maskformer.evaluation.evaluate import evaluate

folder = write_folder(Path(sys.argv[1]), 12)
for task in ("panoptic", "semantic"):
    dataset = open_dataset(folder, "val", "coco-panoptic", task)
    records, several = list(dataset.records), type(dataset.records)
    dataset.records = several(records * 25)
    peaks = []
    evaluate(painter_segmenter(task), dataset, task, progress=lambda done, total: peaks.append(status("VmHWM")))
    assert len(peaks) == 300
    assert peaks[-1] < 1.05 * peaks[40], peaks[::40]
"""


@pytest.mark.parametrize("code", [TILES, MANY_CLASSES, MANY_IMAGES], ids=["tiles", "many classes", "many images"])
def test_memory(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(tmp_path / "data")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
