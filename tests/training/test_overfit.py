"""Every format is read and trained on: for a few steps, and (slow) until four pictures are known by heart.

That only works if classes, masks, sizes and fusing agree from the annotation's file to the metric.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskformer.cli import main
from maskformer.data.recognise import open_dataset
from maskformer.training.trainer import train

from ..data.publishers import WRITERS, write_hub
from .tiny import curve, settings

FORMATS: dict[str, Callable[..., Any] | None] = {  # the writer of each, if it has files
    **{name: writer for name, (writer, *_) in WRITERS.items()},
    "hub": write_hub,
    "scenes": None,
}
SECONDS = 120

# No augmentation but the mirror, no average of weights, and a network that sees the pictures enlarged.
BY_HEART = """
steps: 250
batch_size: 4
reference_batch: 4
learning_rate: 0.0005
backbone_multiplier: 1.0
weight_decay: 0.0
clip_norm: 5.0
warm_up_steps: 10
schedule: cosine
final_share: 0.05
distort_colors: false
min_sizes: [192]
test_size: 192
eval_split: train
eval_every: 250
eval_images: 4
pictures: 0
workers: 0
trackers: [none]
device: cpu
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def write(name: str, root: Path, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """The settings that say what to train on, once it is written."""
    if name == "hub":
        pytest.importorskip("datasets", reason="needs the extra: pip install 'maskformer[data]'")
    writer = FORMATS[name]
    if writer is None:
        return {"data": f"scenes:{count}"}
    root.mkdir()
    writer(root, count, size)
    return {"data": str(root), **({"task": "panoptic"} if name == "hub" else {})}


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_steps(name, tmp_path, checkpoint) -> None:
    data = write(name, tmp_path / "data", 2, (48, 64))
    outcome = train(settings(tmp_path / "run", checkpoint, steps=3, trackers=["none"], **data))
    assert (outcome.step, outcome.skipped) == (3, 0)
    assert all(
        0 < row[term] < 100
        for row in curve(tmp_path / "run")
        for term in ("loss", "loss_cross_entropy", "loss_mask", "loss_dice")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_by_heart(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("maskformer.data.scenes._SMALLEST_SHARE", 0.02)  # a map at stride 4 has no finer outlines
    data = write(name, tmp_path / "data", 4, (96, 128))
    dataset = open_dataset(data["data"], task=data.get("task"))
    targets = [region for index in range(4) for region in dataset[index].regions if region.is_target]
    assert len(targets) >= 20, "this is too easy"
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**yaml.safe_load(BY_HEART), **data}))
    start = time.process_time()  # with one thread no more than the seconds on an idle core
    code = main(["train", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run"), "--json"])
    seconds = time.process_time() - start
    assert code == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    # AP asks for outlines to the pixel (IoU up to 0.95); that all are found, and nothing else, is AP50.
    metric = {"semantic": "mIoU", "instance": "AP50", "panoptic": "PQ"}[dataset.task]
    value = metrics[metric]
    with capsys.disabled():
        print(f"{name}: {len(targets)} targets, {metric} {value:.1f} after {seconds:.0f} s", metrics)
    assert value > 90
    assert seconds < SECONDS
