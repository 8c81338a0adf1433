"""The documentation builds without a warning, and no link inside it is dead."""

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent


class Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src", "data"):
                self.links.append(value)
            elif value and name == "id":
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy, so that nothing is left in the project."""
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "mkdocs.yml", copy)
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said[-3000:]
    assert "Warning" not in said, said[-3000:]
    return copy / "site"


def test_no_dead_links(site: Path) -> None:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    # The figures lead to the reference.
    pages |= {path: Page(path.read_text(encoding="utf-8")) for path in (site / "images").glob("architecture-*.svg")}
    assert len(pages) > 15
    dead = [
        f"{path.relative_to(site)}: {link}" for path, page in pages.items() for link in dead_links(path, page, pages)
    ]
    assert not dead, "\n".join(dead)


def dead_links(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    dead = []
    for link in page.links:
        address, anchor = urldefrag(link)
        if urlparse(address).scheme:
            continue
        target = (path.parent / unquote(address)).resolve() if address else path.resolve()
        target = target / "index.html" if target.is_dir() else target
        known = {other.resolve(): each for other, each in pages.items()}
        if not target.is_file() or (anchor and target in known and anchor not in known[target].anchors):
            dead.append(link)
    return dead
