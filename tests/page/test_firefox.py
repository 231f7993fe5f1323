"""One whole flow of the page in Firefox, by a driver of its own over WebDriver BiDi."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import npm
from tests.browser import SHOTS
from tests.listening import listening
from tests.service import noise, png, scripted_app

PUPPETEER = "puppeteer-core@24.33.0"
FLOW = Path(__file__).with_name("firefox.mjs")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")


@pytest.fixture(scope="module")
def driver():
    """The folder in which the driver is installed; it brings no browser."""
    if not (FIREFOX and shutil.which("npm")) and os.environ.get("CI") != "true":
        pytest.skip("needs Firefox and npm: `apt-get install firefox-esr npm`")
    folder = npm.install(PUPPETEER)
    shutil.copy(FLOW, folder)
    return folder


def test_the_page_works_in_firefox(driver, upscaler, tmp_path):
    """A photo is chosen, upscaled, compared by keyboard, and kept until it is saved."""
    (tmp_path / "größe.png").write_bytes(png(noise(40, 60)))
    SHOTS.mkdir(parents=True, exist_ok=True)
    with listening(scripted_app(tmp_path, lightweight_x2=upscaler)) as address:
        command = ["node", FLOW.name, address, str(tmp_path / "größe.png"), str(SHOTS / "firefox.png"), str(FIREFOX)]
        flow = subprocess.run(command, cwd=driver, capture_output=True, text=True, timeout=200, check=False)
    assert flow.returncode == 0, flow.stderr
    assert json.loads(flow.stdout) == {
        "name": "größe-lightweight-x2.webp",
        "size": [120, 80],
        "split": "49",
        "facts": json.loads(flow.stdout)["facts"],
        "stored": "webp",
        "asksBeforeLeaving": True,
        "complaints": [],
    }
    assert "60 × 40 → 120 × 80" in json.loads(flow.stdout)["facts"]
