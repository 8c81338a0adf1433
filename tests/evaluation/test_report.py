"""The HTML report: whole in itself, and right in what it shows."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maskformer.data.recognise import open_dataset
from maskformer.evaluation.evaluate import Evaluation, evaluate
from maskformer.evaluation.loop import Options
from maskformer.evaluation.report import gallery, write_report

from .painter import painter_segmenter, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), 6)


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "action")]


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_report(folder, tmp_path, task):
    segmenter, dataset = painter_segmenter(task), open_dataset(folder, "val", "coco-panoptic", task)
    result = evaluate(segmenter, dataset, task)
    pictures = gallery(segmenter, dataset, result, Options(), count=2)
    write_report(tmp_path / "new" / "report.html", result, "<my model>", "data & more", pictures)
    text = (tmp_path / "new" / "report.html").read_text()
    page = Links(text)
    assert "script" not in page.tags
    assert all(link.startswith("data:image/") for link in page.found)
    assert "http" not in text
    assert "&lt;my model&gt; on data &amp; more" in text
    for name, value in result.metrics.items():
        assert f"<td>{name}</td><td>{'–' if value is None else format(value, '.2f')}</td>" in text
    assert all(f"<td>{row['name']}</td>" in text for row in result.per_class)
    assert text.count('class="bar"') == len(result.per_class)
    scores = [row["score"] for row, *_ in pictures]
    ranked = sorted(row["score"] for row in result.images)
    assert scores == ranked[:2] + ranked[-2:]
    for link in page.found:
        Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).load()
    assert len(page.found) == 8 + (task != "instance")


def test_the_matrix_shows_each_class_by_its_share(tmp_path):
    confusion = np.array([[75, 25, 0], [0, 10, 0], [0, 0, 0]])
    rows = [{"id": 0, "name": "a", "IoU": 75.0, "predicted": 75}, {"id": 1, "name": "b", "IoU": 28.6, "predicted": 35}]
    images = [{"index": 0, "path": "x", "score": 1.0}]
    seconds = dict.fromkeys(("load", "forward", "post_processing", "metric"), 0.5)
    result = Evaluation("semantic", {"mIoU": 51.8}, rows, images, 1, seconds, ["odd & so"], ["a", "b"], confusion)
    write_report(tmp_path / "report.html", result, "m", "d")
    text = (tmp_path / "report.html").read_text()
    assert "<td>a</td><td>b</td><td>25</td><td>25.0 %</td>" in text
    assert text.count("<td>a</td><td>b</td>") == 1
    assert ">nothing</text>" in text
    assert '<p class="warning">odd &amp; so</p>' in text
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", text)[1])))
    pixels = np.asarray(picture)[..., 0].astype(int)
    assert pixels[0, 0] < pixels[0, 1] < pixels[0, 2] == 255
    assert pixels[1, 1] == 0
    assert "PARTIAL" not in text
    write_report(tmp_path / "report.html", replace(result, num_images=5), "m", "d")
    assert "PARTIAL: 1 of 5 images" in (tmp_path / "report.html").read_text()
