"""A hand draws on the page in a real browser: Debian's chromium, or the one that playwright installs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
pytest.importorskip("playwright", reason="a browser is driven by playwright: pip install playwright")
from playwright.sync_api import sync_playwright

from cldm.app.server import serving
from cldm.app.studio import Studio
from cldm.app.wish import Control
from cldm.runs.checkout import REPOSITORY

pytestmark = pytest.mark.slow

DONE = """told => {
  const now = document.querySelector('#told').innerText;
  return /^1 image in/.test(now) && now !== told;
}"""
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        installed = Path(driver.chromium.executable_path)
        found = next(filter(None, map(shutil.which, NAMES)), installed if installed.exists() else None)
        if found is None:
            pytest.skip("there is no chromium: apt-get install chromium, or playwright install chromium")
        opened = driver.chromium.launch(executable_path=str(found), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def studio(tmp_path: Path, make_run: Callable[..., Path]) -> Studio:
    run = make_run(tmp_path / "run")
    return Studio([f"checkpoint={run}", f"base={run}/base.safetensors", "count=1", "sampler.steps=2"])


def hint_drawn(page: Any, studio: Studio) -> np.ndarray:
    """The hint of the image that a press of Draw adds."""
    before = {*studio.folder.glob("*/sheet.png")}
    page.click("#draw")
    while not (new := {*studio.folder.glob("*/sheet.png")} - before):
        page.wait_for_timeout(50)
    return np.asarray(Image.open(new.pop().parent / "hint.png"))


def drawn(page: Any, studio: Studio) -> np.ndarray:
    """The image that a press of Draw adds, as the page shows it, once it is there."""
    before = {*studio.folder.glob("*/seed_0.png")}
    told = page.inner_text("#told")
    page.click("#draw")
    page.wait_for_function(DONE, arg=told)
    (file,) = {*studio.folder.glob("*/seed_0.png")} - before
    page.locator("#gallery img").first.wait_for()
    return np.asarray(Image.open(file)).astype(int)


def stroke(page: Any) -> None:
    """A box on the canvas, with the pen that is in the hand when the page opens."""
    page.locator('#canvas [data-taken="yes"]').wait_for(state="attached")
    page.locator("#canvas").scroll_into_view_if_needed()
    frame = page.locator("#canvas canvas").first.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x - 60, y - 60)
    page.mouse.down()
    for right, below in ((60, -60), (60, 60), (-60, 60), (-60, -60)):
        page.mouse.move(x + right, y + below, steps=6)
    page.mouse.up()
    page.wait_for_timeout(500)


def test_a_stroke_changes_the_image_and_nothing_is_loaded_from_elsewhere(browser: Any, studio: Studio) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with serving(studio) as opened:
        page.goto(opened.local_url)
        page.locator("#canvas canvas").first.wait_for()
        blank = drawn(page, studio)
        stroke(page)
        with_stroke = drawn(page, studio)
        hints = [np.asarray(Image.open(path)) for path in sorted(studio.folder.glob("*/hint.png"))]
        for width in (1280, 420):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
    assert [bool(hint.any()) for hint in hints] == [False, True]
    assert np.abs(blank - with_stroke).max() > 1
    assert asked
    assert {url for url in asked if not url.startswith((opened.local_url, "data:", "blob:"))} == set()


def wait_for_refusal(page: Any, sentence: str) -> None:
    """Until the page shows the sentence."""
    page.get_by_test_id("toast-body").filter(has_text=sentence).first.wait_for()


def test_a_map_is_drawn_on_and_refusals_are_read_on_the_page(
    browser: Any, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "vocabulary", ["octopus", "owl"])
    (tmp_path / "words.png").write_text("no picture")
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(120_000)
    with serving(studio) as opened:
        page.goto(opened.local_url)
        page.get_by_label("made from a picture").check()
        page.set_input_files("#picture input[type=file]", REPOSITORY / "docs" / "hint.png")
        page.locator("#seen img").wait_for()
        edit = page.get_by_role("button", name="Draw on this map")
        edit.click()
        page.locator("#canvas").wait_for()
        hint = hint_drawn(page, studio)
        page.get_by_label("white on black").check()
        turned = hint_drawn(page, studio)
        stroke(page)
        added = hint_drawn(page, studio)

        page.get_by_label("made from a picture").check()
        page.get_by_label("Remove Image").first.click()
        page.set_input_files("#picture input[type=file]", tmp_path / "words.png")
        wait_for_refusal(page, "cannot use photo words.png: it is not a readable picture")
        page.locator("#seen img").wait_for(state="detached")
        assert edit.is_disabled()
        page.get_by_label("number input for Scale").first.fill("")
        page.click("#draw")
        wait_for_refusal(page, "Scale must be a number from 0 to 2, got nothing")

        page.get_by_label("What the picture shows").press_sequentially("an oc")
        page.get_by_text("octopus", exact=True).first.click()
        page.wait_for_function("document.activeElement.value === 'an octopus '")
        page.keyboard.type("x")
        assert page.evaluate("document.activeElement.value") == "an octopus x"
        page.close()
    seen = np.asarray(studio.hint(Control(photo=REPOSITORY / "docs" / "hint.png")))
    assert seen.any()
    assert np.array_equal(hint[4::8, 4::8], seen)
    assert np.array_equal(hint, turned)  # though Draw was pressed before the page had turned the canvas
    assert added.astype(int).sum() > hint.astype(int).sum()
