# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: a person drops, draws, types, clicks and sees."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_fakes import HalfMatcher, SplitLocator
from PIL import Image

pytest.importorskip("starlette", reason="the extra app is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn")
app = pytest.importorskip("patchword.app")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    bench = app.Workbench(
        locators={"photo": SplitLocator, "sketch": SplitLocator}, matcher=HalfMatcher
    )
    config = uvicorn.Config(app.create_app(bench), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = browser.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()
    assert problems == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((60, 80, 3), 180, dtype=np.uint8)).save(path)
    return path


def colors_of(locator: Any) -> int:
    shot = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    return len(np.unique(np.asarray(shot).reshape(-1, 3), axis=0))


def test_words_in_a_photograph(page: Any, photo: Path) -> None:
    page.set_input_files("#picture", photo)
    page.fill("#words", "a dog\na tree")
    page.click("#go")
    page.wait_for_selector("#overlay:visible")
    assert page.locator("#legend li").count() == 2
    assert "a dog" in page.locator("#legend").inner_text()
    before = page.get_attribute("#overlay", "src")
    assert colors_of(page.locator("#overlay")) > 2
    page.evaluate("threshold.value = '1'; threshold.dispatchEvent(new Event('change'))")
    page.wait_for_function("old => document.getElementById('overlay').src !== old", arg=before)
    assert "0.0 %" in page.locator("#legend").inner_text()


def test_words_in_a_drawing(page: Any) -> None:
    page.check("input[value=sketch]")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 150, steps=5)
    page.mouse.up()
    page.fill("#words", "giraffe")
    page.click("#go")
    page.wait_for_selector("#overlay:visible")
    assert page.locator("#overlay").evaluate("i => i.naturalWidth") == 512


def test_two_pictures(page: Any, photo: Path) -> None:
    page.click("#tab-match")
    page.set_input_files("#picture0", photo)
    page.set_input_files("#picture1", photo)
    page.click("#go-match")
    page.wait_for_selector("#match-overlay:visible")
    assert "score 0.75" in page.locator("#match-state").inner_text()


def test_mistakes_are_said_on_the_page(page: Any, tmp_path: Path) -> None:
    page.click("#go")
    assert "choose a picture" in page.locator("#words-state").inner_text()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    page.set_input_files("#picture", bad)
    page.fill("#words", "dog")
    page.click("#go")
    page.wait_for_selector(".state.bad >> text=the picture")
