"""Every code block of README and the documentation runs, in the order it is read, each page in a folder of its own.

Blocks of Python share their names within a page; blocks of shell are run line by line. What cannot be run without a
download, a license or a second machine stands in blocks of plain text.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from maskformer.cli import main

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page)), "a block is python, sh or text"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, object] = {"__name__": page.stem}
    for kind, text in blocks(page):
        if kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # of the libraries a block calls
                exec(compile(text, f"{page.name}, python", "exec"), names)
        elif kind == "sh" and "&\n" in text:
            run_line(text)  # what runs in the background belongs to the lines after it
        elif kind == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line)


def run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "maskformer" and "&\n" not in line:
        assert main(words[1:]) == 0, line
    else:
        done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def test_commands_that_cannot_run_here_have_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [text.replace("\\\n", " ") for page in PAGES for kind, text in blocks(page) if kind == "text"]
    lines = {line for text in texts for line in text.splitlines() if line.startswith("maskformer ")}
    assert len(lines) > 5
    for line in lines:
        command = re.findall(r"[\w-]+", line)[1]
        assert main([command, "--help"]) == 0
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[\w-]+", line)) <= known, line


def test_the_table_of_settings_is_that_of_the_code() -> None:
    settings = runpy.run_path(str(ROOT / "docs" / "figures" / "settings.py"))
    page = settings["PAGE"].read_text(encoding="utf-8")
    assert page.partition(settings["START"])[2].partition(settings["END"])[0] == settings["table"]()


def test_named_tests_are_there() -> None:
    """Pages name the test behind a claim; it exists."""
    named = {
        found
        for page in PAGES
        for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 8
    for path, function in named:
        assert re.search(rf"^def {function}\b" if function else "", (ROOT / path).read_text(encoding="utf-8"), re.M), (
            path,
            function,
        )


def test_every_row_of_the_differences_has_its_tests() -> None:
    page = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| ([\w, ]+) \|$", page, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    for number, folders in rows:
        for folder in folders.split(", "):
            tests = (ROOT / "tests" / folder / "test_peer_differences.py").read_text(encoding="utf-8")
            assert f"def test_row_{number}_" in tests, (number, folder)
