"""What the trainer's loader holds: no more after 2,000 steps than after 200, and little for an image full of objects.

Each runs in a process of its own, so that what is counted belongs to the loader.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADER = """
import statistics, sys
from pathlib import Path
import psutil
from maskformer.data.collate import Collate
from maskformer.data.recognise import open_dataset
from maskformer.training.batches import Order, build_loader
from maskformer.training.recipes import resolve

def loader(root, **settings):
    config = resolve({"data": root, "out": Path("unused"), "model": "scenes", **settings})
    dataset = open_dataset(root)
    collate = Collate(size=config.crop_size, multiple=32, with_valid_mask=True, packed=True)  # as the trainer's
    return build_loader(dataset, config, collate, Order(len(dataset), config))

def held():  # MiB of this process and its workers: resident, and what each has for itself alone
    own = psutil.Process()
    used = [process.memory_full_info() for process in (own, *own.children(True))]
    return sum(each.rss for each in used) / 2**20, sum(each.uss for each in used) / 2**20
"""

STEPS = """
sizes = dict(min_sizes=[48, 64, 80], crop_size=(48, 64), distort_colors=True)
batches = loader(sys.argv[1], steps=2000, batch_size=2, workers=int(sys.argv[2]), **sizes)
windows = {200: [], 2000: []}
for step, _ in enumerate(batches, 1):
    window = next((end for end in windows if end - 50 < step <= end), None)
    if window and step % 10 == 0:
        windows[window].append(held())
first, last = ([statistics.median(values) for values in zip(*window, strict=True)] for window in windows.values())
print("resident and private MiB after 200 steps", first, "and after 2000", last)
assert last[0] - first[0] < 5 and last[1] - first[1] < 5, windows
"""

CROWD = """
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024  # MiB

peaks, sizes = [], []
for root, count in zip(sys.argv[1:], (1, 1, 200), strict=True):  # the first one is for all that is loaded once
    batches = loader(root, steps=3, batch_size=1, workers=0, min_sizes=[800], distort_colors=True)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for batch in batches:
        (targets,) = batch["mask_labels"]
        assert len(targets) == count
        sizes.append(targets.planes.numel() * targets.planes.element_size() / 2**20)
        del batch, targets  # else there are two at a time
    peaks.append(status("VmHWM") - before)
print("targets of", sizes, "MiB; resident while reading", peaks)
assert sizes[-1] < 30, sizes
assert peaks[-1] - peaks[1] < 100, peaks  # nor is there more on the way
"""


def python(code: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOADER + code, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_does_not_grow(tmp_path, workers):
    from .publishers import write_coco_instances

    write_coco_instances(tmp_path / "data", 12)
    print(python(STEPS, tmp_path / "data", workers))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads its memory from Linux's /proc")
def test_two_hundred_instances_through_the_loader(tmp_path):
    from .test_sample import crowded

    one, many = crowded(tmp_path / "one", 1), crowded(tmp_path / "many")
    print(python(CROWD, one, one, many))
