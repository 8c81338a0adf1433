"""Two processes under torchrun print what one prints, to the last digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskformer.data.recognise import open_dataset
from maskformer.evaluation.evaluate import evaluate
from maskformer.evaluation.loop import Options

from .painter import painter_segmenter, write_folder

WORKER = Path(__file__).with_name("distributed_worker.py")
TASKS = ("panoptic", "semantic", "instance")


def alone(folder, task, **options):
    dataset = open_dataset(folder, "val", "coco-panoptic", task)
    result = evaluate(painter_segmenter(task), dataset, task, Options(**options))
    return json.loads(json.dumps({"metrics": result.metrics, "per_class": result.per_class, "images": result.images}))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """The data set, and where two processes have written their results."""
    folder, out = write_folder(tmp_path_factory.mktemp("data"), 8), tmp_path_factory.mktemp("out")
    for task in TASKS:
        alone(folder, task, directory=out / task, submission=True)
        journal = out / task / "journal-0.jsonl"
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, out


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_equal_one(places, task):
    folder, out = places
    expected, of_one_image = alone(folder, task), alone(folder, task, limit=1)
    for rank in range(2):
        found = json.loads((out / f"rank-{rank}.json").read_text())
        assert found[task] == expected
        assert found[f"{task} 1"] == of_one_image
    lines = [len((out / task / f"journal-{rank}.jsonl").read_text().splitlines()) for rank in range(2)]
    assert lines == [1 + 3 + 3, 1 + 2]  # three were there; five images over two processes


def test_submissions_hold_the_images_of_all_processes(places):
    _, out = places
    panoptic = json.loads((out / "panoptic/submission/panoptic.json").read_text())["annotations"]
    assert sorted(entry["image_id"] for entry in panoptic) == [900 - 7 * number for number in range(7, -1, -1)]
    assert len(list((out / "panoptic/submission/panoptic").glob("*.png"))) == 8
    results = json.loads((out / "instance/submission/results.json").read_text())
    assert len({entry["image_id"] for entry in results}) == 8
