"""The pictures that the page and README show, made anew with the weights that are here: ``make pictures``."""

from __future__ import annotations

from io import BytesIO

from PIL import Image
from playwright.sync_api import sync_playwright

from app.client import Client
from app.main import create_app
from app.settings import Settings
from tests.browser import CHROMIUM, SWITCHES, WEB
from tests.listening import listening

SCREEN = {"width": 1280, "height": 760}


def paint() -> None:
    """Upscale the sample by ``small-x2``, and photograph the page that shows it."""
    with listening(create_app(Settings(variants=("small-x2",), device="cpu"))) as address:
        with Client(address) as client:
            upscaled = client.upscale((WEB / "sample.png").read_bytes(), "small-x2").content
        with Image.open(BytesIO(upscaled)) as image:
            image.save(WEB / "sample-upscaled.webp", lossless=True, quality=100, method=6)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
            page = browser.new_page(viewport=SCREEN, device_scale_factor=1.5, color_scheme="light")
            page.goto(address)
            page.locator("[aria-busy=false]").wait_for()
            page.locator("#split").fill("72")
            page.locator("#split").blur()
            photograph = page.screenshot()
    with Image.open(BytesIO(photograph)) as image:
        image.convert("RGB").save(WEB / "page.webp", quality=86, method=6)


if __name__ == "__main__":
    paint()
