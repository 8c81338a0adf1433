"""Every refusal leads to a section of the documentation, and the section is there."""

import ast
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer import MaskFormerConfig, MaskFormerImageProcessor, Segmenter, load_model
from maskformer.cli import main
from maskformer.explanations import SECTIONS, pages, section_of

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "maskformer"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("section", sorted(set(SECTIONS.values())))
def test_sections_are_there(section: str) -> None:
    page, _, anchor = section.partition("#")
    assert (ROOT / "docs" / page).is_file()
    assert not anchor or anchor in anchors(ROOT / "docs" / page)


def test_every_module_that_refuses_has_one() -> None:
    for path in SOURCE.rglob("*.py"):
        module = ".".join(["maskformer", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        names = {node.exc.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)
                 and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)}  # fmt: skip
        if names & {"ValueError", "DataError"}:
            assert any(module == known or module.startswith(f"{known}.") for known in SECTIONS), module


def test_every_section_is_of_a_module() -> None:
    for name in SECTIONS:
        place = SOURCE.joinpath(*name.split(".")[1:])
        assert place.is_dir() or place.with_suffix(".py").is_file(), name


def refusals(tmp_path: Path) -> dict:
    processor = MaskFormerImageProcessor()
    return {
        "messages.md#checkpoints": lambda: load_model(tmp_path),
        "messages.md#configuration": lambda: MaskFormerConfig.from_zoo("none of these"),
        "messages.md#pictures": lambda: processor(b"not a picture"),
        "messages.md#settings-of-the-processor": lambda: processor(np.zeros((4, 4, 3), np.uint8), size={"edge": 3}),
        "messages.md#results": lambda: Segmenter.from_pretrained("scenes").predict([], task="everything"),
        "messages.md#targets": lambda: load_model("scenes").criterion(
            torch.zeros(1, 5, 8, 8), torch.zeros(1, 5, 15), [torch.zeros(1, 8, 8)], [torch.tensor([99])]
        ),
    }


@pytest.mark.parametrize("section", refusals(Path()))
def test_errors_carry_the_section_in_a_note(section: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\w+") as caught:
        refusals(tmp_path)[section]()
    assert caught.value.__notes__ == [f"Explained in docs/{section}"]
    assert section_of(caught.value) == f"docs/{section}"


def test_a_refusal_that_passes_several_public_functions_carries_one_note(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no readable checkpoint") as caught:
        Segmenter.from_pretrained(tmp_path)
    assert caught.value.__notes__ == ["Explained in docs/messages.md#checkpoints"]


def test_the_command_line_says_it_in_the_same_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("(explained in docs/messages.md#data)\n")


def test_the_pages_are_found_and_come_with_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert (pages() / "messages.md").is_file()
    assert main(["--help"]) == 0
    assert str(pages()) in capsys.readouterr().out
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {f"docs/{section.partition('#')[0]}" for section in SECTIONS.values()} <= packed["force-include"].keys()
    assert all(inside == f"maskformer/{page}" for page, inside in packed["force-include"].items())


def test_errors_of_others_lead_nowhere() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert section_of(caught.value) is None
