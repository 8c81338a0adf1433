"""What README says of the bundled model is what the demo measures."""

import re
from pathlib import Path

import pytest

from maskformer import Segmenter
from maskformer.cli.demo import measure

README = Path(__file__).parent.parent / "README.md"


def test_figures_of_the_bundled_model() -> None:
    stated = re.search(r"panoptic quality \*\*([\d.]+) %\*\* and mean IoU \*\*([\d.]+) %\*\*", README.read_text())
    assert stated
    measured = measure(Segmenter.from_pretrained("scenes"), 20)
    # The last digit may differ between processors: convolutions round differently.
    assert measured == pytest.approx([float(figure) for figure in stated.groups()], abs=0.5)
    assert measured[0] >= 70
    assert measured[1] >= 80


def test_the_bundled_file_is_small() -> None:
    files = (Path(__file__).parent.parent / "src/maskformer/checkpoints/bundled").rglob("*.safetensors")
    assert [file.stat().st_size < 12e6 for file in files] == [True]
