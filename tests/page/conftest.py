"""The page of a scripted service, open in a Chromium of this machine."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib.resources import files

import pytest

from tests.browser import CHROMIUM, DESK, PHONE, SWITCHES
from tests.listening import listening
from tests.scripted import ScriptedUpscaler
from tests.service import scripted_app

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make install`")


@pytest.fixture(scope="module")
def chromium():
    """The browser; CI installs it, so there it is never missing.

    It does not last longer: Playwright runs an event loop in this thread, and tests elsewhere start their own.
    """
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium is installed: `apt-get install chromium`")
    assert CHROMIUM, "CI installs Chromium"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def upscaler():
    """In the network's place; it lets everything through until a test closes its gate."""
    upscaler = ScriptedUpscaler()
    yield upscaler
    upscaler.gate.open()


@pytest.fixture
def visit(chromium, upscaler, tmp_path):
    """Opens the page of a scripted service; fails where the page asks elsewhere, or complains."""

    @contextmanager
    def go(settings=None, viewport=DESK, scheme="light", *, script="", touch=False, path=""):
        app = scripted_app(tmp_path, settings, lightweight_x2=upscaler)
        with listening(app) as address:
            context = chromium.new_context(
                viewport=viewport, color_scheme=scheme, has_touch=touch, accept_downloads=True, reduced_motion="reduce"
            )
            context.set_default_timeout(15_000)
            context.add_init_script(script or "0")
            page = context.new_page()
            asked, complaints = [], []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"{address}/{path}")
            page.locator("[aria-busy=false]").wait_for()
            try:
                yield page
            finally:
                upscaler.gate.open()
                context.close()
            assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []
            assert complaints == []

    return go


@pytest.fixture(scope="session")
def axe():
    """The script that looks for what shuts people out."""
    return files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")


A_FRAME = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
"""A page receives pointer moves once for each of its frames."""


@pytest.fixture
def fingers(visit):
    """The page on a phone, and what puts fingers on it, moves them there, and lifts those that are not named again."""

    @contextmanager
    def touch():
        with visit(viewport=PHONE, touch=True) as page:
            session = page.context.new_cdp_session(page)
            down = set()

            def move(*places):
                points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
                kind = (
                    "touchMove" if len(points) == len(down) else "touchEnd" if len(points) < len(down) else "touchStart"
                )
                down.clear()
                down.update(range(len(points)))
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
                page.evaluate(A_FRAME)

            page.locator("#stage").evaluate("stage => stage.scrollIntoView({block: 'end'})")
            yield page, move

    return touch
