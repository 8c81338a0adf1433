"""What the page leaves on the disk."""

import os
import time

from maskformer.serving.page import _show
from maskformer.serving.predictor import Options


def test_results_that_nobody_asks_for_any_more_are_removed(predictor, scenes, tmp_path) -> None:
    [result] = predictor.predict([(scenes[0], Options(task="panoptic"))])
    (tmp_path / "scene.png").write_bytes(scenes[0])
    _show(result, tmp_path)
    first = set(tmp_path.iterdir())
    _show(result, tmp_path)
    assert len(set(tmp_path.iterdir())) == 5  # the example, and two files each
    for file in first:
        os.utime(file, (time.time() - 700, time.time() - 700))
    _show(result, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 5
    assert left & {path.name for path in first} == {"scene.png"}
