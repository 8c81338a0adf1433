"""What README says, in both languages, is what was measured: of the bundled model, and against transformers."""

import re
from pathlib import Path

import pytest

from maskformer import Segmenter
from maskformer.cli.demo import measure

ROOT = Path(__file__).parent.parent
README, ARABIC = ROOT / "README.md", ROOT / "README.ar.md"


def test_figures_of_the_bundled_model() -> None:
    stated = re.search(r"panoptic quality \*\*([\d.]+) %\*\* and mean IoU \*\*([\d.]+) %\*\*", README.read_text())
    assert stated
    for figure in stated.groups():
        assert f"**{figure} %**" in ARABIC.read_text(encoding="utf-8")
    measured = measure(Segmenter.from_pretrained("scenes"), 20)
    # The last digit may differ between processors: convolutions round differently.
    assert measured == pytest.approx([float(figure) for figure in stated.groups()], abs=0.5)
    assert measured[0] >= 70
    assert measured[1] >= 80


def test_the_bundled_file_is_small() -> None:
    files = (ROOT / "src/maskformer/checkpoints/bundled").rglob("*.safetensors")
    assert [file.stat().st_size < 12e6 for file in files] == [True]


@pytest.mark.parametrize("page", [README, ARABIC], ids=lambda page: page.name)
def test_the_table_is_the_newest_measurement(page: Path) -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("2*.md"))
    shown = page.read_text(encoding="utf-8").partition("<!-- benchmark -->\n")[2].partition("<!-- /benchmark -->")[0]
    assert shown.count("\n") > 10
    assert shown in newest.read_text(encoding="utf-8")


def test_both_languages_give_the_same_commands() -> None:
    def commands(page: Path) -> list[str]:
        blocks = re.findall(r"^```(?:sh|python|text)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]

    assert commands(README) == commands(ARABIC)
