"""The script for those who have only the file."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

from maskformer import Segmenter

from .conftest import pictures

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_inference.py"


@pytest.mark.slow  # the file takes long to make
def test_it_finds_what_the_segmenter_finds(
    tmp_path: Path, panoptic_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "import torch" not in SCRIPT.read_text()
    Image.fromarray(pictures()[0]).save(tmp_path / "a.png")
    runpy.run_path(str(SCRIPT))["main"](str(panoptic_file), str(tmp_path / "a.png"))
    (result,) = Segmenter.from_pretrained(panoptic_file).predict(tmp_path / "a.png")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(result.segments) > 1
    for line, segment in zip(lines, result.segments, strict=True):
        assert line.startswith(f"{tmp_path / 'a.png'}: {segment.label}, score {segment.score:.2f}")
