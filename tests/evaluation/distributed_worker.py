"""One process of the two-process test; torchrun starts it as `distributed_worker.py FOLDER OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from painter import painter_segmenter
from torch import distributed

from maskformer.data.recognise import open_dataset
from maskformer.evaluation.evaluate import evaluate
from maskformer.evaluation.loop import Options


def main(folder: str, out: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    results = {}
    for task in ("panoptic", "semantic", "instance"):
        dataset = open_dataset(folder, "val", "coco-panoptic", task)
        # The records of three images are there already, of one process that was stopped.
        options = Options(directory=Path(out) / task, resume=True, submission=True)
        result = evaluate(painter_segmenter(task), dataset, task, options)
        results[task] = {"metrics": result.metrics, "per_class": result.per_class, "images": result.images}
        # Fewer images than processes, and nothing on disk, as in the middle of a training.
        result = evaluate(painter_segmenter(task), dataset, task, Options(limit=1))
        results[f"{task} 1"] = {"metrics": result.metrics, "per_class": result.per_class, "images": result.images}
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
