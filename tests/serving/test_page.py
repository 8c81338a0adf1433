"""The page in a browser: three tasks in light and dark, pointing, keyboard, downloads, and nobody else is asked."""

import json
from pathlib import Path

import pytest

from maskformer.data.scenes import draw_scene

from .conftest import png_of
from .live import live

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="the page is looked at with playwright")
CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def service():
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium to look at the page with")
    with live() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=[*QUIET, "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "scene.png"
    file.write_bytes(png_of(draw_scene(9_999_951, (384, 512)).image))
    return file


def opened(browser, service, picture=None, scheme="light"):
    page = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(30_000)
    page.elsewhere, page.errors = [], []
    home = f"http://127.0.0.1:{service.port}/"
    page.on("request", lambda request: page.elsewhere.append(request.url) if not _is_here(request.url, home) else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(home)
    page.get_by_label("panoptic", exact=True).wait_for()
    if picture is not None:
        page.set_input_files("input[type=file]", str(picture))
        page.wait_for_selector("#segments .legend-item")
    return page


def _is_here(url, home) -> bool:
    return url.startswith((home, "blob:", "data:"))


def legend(page) -> list[str]:
    return [text.strip() for text in page.locator("#segments .legend-item").all_text_contents()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_three_tasks(browser, service, picture, scheme, tmp_path) -> None:
    page = opened(browser, service, picture, scheme)
    seen = {"panoptic": legend(page)}
    for task in ("semantic", "instance"):
        before = legend(page)
        page.get_by_label(task, exact=True).check()
        page.wait_for_function(
            "before => { const labels = [...document.querySelectorAll('#segments .legend-item')];"
            " return labels.length && labels.map(e => e.innerText.trim()).join() !== before.join() }",
            arg=before,
        )
        seen[task] = legend(page)
        page.screenshot(path=tmp_path / f"{scheme}-{task}.png", full_page=True)
        assert (tmp_path / f"{scheme}-{task}.png").stat().st_size > 50_000
        # The page switches the threshold off and on in an event of its own, before or after the answer.
        state = ":disabled" if task == "semantic" else ":enabled"
        page.wait_for_selector(f"input[type=range]{state}")
    assert any(entry.startswith("sky · ") for entry in seen["panoptic"])
    assert any(entry.startswith("car 2 · ") for entry in seen["panoptic"])
    assert not any(entry.startswith("car 2 · ") for entry in seen["semantic"])
    assert not any(entry.startswith("sky · ") for entry in seen["instance"])
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.elsewhere == []
    assert page.errors == []


def test_pointing_at_a_segment_shows_its_label_and_score(browser, service, picture) -> None:
    page = opened(browser, service, picture)
    page.wait_for_function("[...document.querySelectorAll('#segments img.mask')].every(e => e.complete)")
    box = page.locator("#segments img.base-image").bounding_box()
    width = box["height"] * 512 / 384  # the picture stands in the middle of a wider box
    left = box["x"] + (box["width"] - width) / 2
    page.mouse.move(left + 0.84 * width, box["y"] + 0.25 * box["height"])
    tip = page.locator("#segment-tip")
    tip.wait_for(state="visible")
    assert tip.text_content().startswith("balloon · ")
    page.mouse.move(left + 0.5 * width, box["y"] + 0.05 * box["height"])
    assert tip.text_content().startswith("sky · ")
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_threshold_and_downloads(browser, service, picture) -> None:
    page = opened(browser, service, picture)
    before = legend(page)
    page.get_by_role("slider").fill("0.95")
    page.wait_for_function(f"document.querySelectorAll('#segments .legend-item').length < {len(before)}")
    with page.expect_download() as download:
        page.get_by_text("Download JSON").click()
    found = json.loads(Path(download.value.path()).read_text())
    assert found["size"] == [384, 512]
    assert all(segment["score"] > 0.95 for segment in found["segments"])
    assert len(found["segments"]) == len(legend(page))
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    assert page.elsewhere == []


def test_keyboard_alone(browser, service) -> None:
    page = opened(browser, service)
    reached: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const e = document.activeElement; return [e.tagName, e.type, e.getAttribute('aria-label'),"
            " e.innerText, e.value].filter(Boolean).join(' ') })()"
        )
        reached.append(name)
        if "scene" in name or "xample" in name or "gallery" in page.evaluate("document.activeElement.className"):
            page.keyboard.press("Enter")
            break
    page.wait_for_selector("#segments .legend-item")
    everything = " | ".join(reached)
    assert "radio panoptic" in everything, everything
    assert "range" in everything, everything
    page.locator("#segments .legend-item").first.focus()  # gradio shows the segment of a label that has the focus
    assert page.locator("#segments img.mask.active").count() == 1


def test_what_is_no_picture_gets_a_sentence(browser, service, tmp_path) -> None:
    page = opened(browser, service)
    (tmp_path / "broken.png").write_bytes(b"hello")
    page.set_input_files("input[type=file]", str(tmp_path / "broken.png"))
    toast = page.locator(".toast-body, [data-testid=toast-body]").first
    toast.wait_for()
    assert len(toast.inner_text().split()) > 3
    assert service.process.poll() is None
