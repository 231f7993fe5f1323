"""What tests of the page do in a real Chromium, and what they look at."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.service import noise, png

WEB = Path(__file__).parents[1] / "app" / "web"
SAMPLE_SIZE = 240, 160
"""Width and height of app/web/sample.png."""

SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SWITCHES = [
    "--no-sandbox",  # the pages are ours, and CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
PICTURE = noise(300, 200)


def given(name="photo.png", pixels=PICTURE):
    """A file as Playwright hands it to a page."""
    body = pixels if isinstance(pixels, bytes) else png(pixels)
    return {"name": name, "mimeType": "image/png", "buffer": body}


def choose(page, *pictures):
    """Choose files, as the button does."""
    page.locator("#choose").set_input_files(list(pictures))


def row(page, name):
    """The row of a file."""
    return page.locator(".item").filter(has_text=name)


def button(place, name):
    """A button or link that can be seen, by its words."""
    return place.locator("[data-act]:visible").filter(has_text=name)


def done(page, name):
    """Wait until a file is upscaled."""
    button(row(page, name), "Download").wait_for()


def shoot(page, name, *, whole=True):
    """A picture of the page, or of what the screen shows of it, for a person to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)


def broken_rules(page):
    """What axe-core finds, as sentences."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{each['id']} ({each['impact']}): {each['nodes'][0]['html'][:200]}" for each in found]
