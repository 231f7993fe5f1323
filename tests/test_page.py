"""The page in a real Chromium: what a person sees and does, by mouse, by touch, and without either.

Screenshots land in ``build/screenshots``.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.sample import SIZE, draw_sample
from tests.listening import listening
from tests.scripted import ScriptedUpscaler
from tests.service import enlarged, noise, pixels_of, png, scripted_app

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make install`")

WEB = Path(__file__).parents[1] / "app" / "web"
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


@pytest.fixture(scope="module")
def chromium():
    """The browser; CI installs it, so there it is never missing."""
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
    def go(settings=None, viewport=DESK, scheme="light", *, script="", touch=False):
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
            page.goto(address)
            page.locator("#variant-list[aria-busy=false]").wait_for()
            try:
                yield page
            finally:
                upscaler.gate.open()
                context.close()
            assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []
            assert complaints == []

    return go


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


def shoot(page, name):
    """A picture of the page for a person to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_a_picture_is_chosen_upscaled_shown_and_downloaded(visit):
    """The download is the server's answer under a name that says what was done."""
    with visit() as page:
        choose(page, given())
        done(page, "photo.png")
        assert "lightweight-x2" in row(page, "photo.png").inner_text()
        assert page.locator("#shown-name").inner_text() == "photo.png"
        assert "200 × 300 → 400 × 600" in page.locator("#shown-facts").inner_text()
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "photo-lightweight-x2.png"
        np.testing.assert_array_equal(pixels_of(Path(download.value.path()).read_bytes()), enlarged(PICTURE))


def test_the_options_are_sent(visit):
    """Format and metadata, and a name with letters of all kinds."""
    with visit() as page:
        page.get_by_text("Options").click()
        page.locator("#format").select_option("webp")
        page.locator("#strip").check()
        with page.expect_request("**/v1/upscale?*") as request:
            choose(page, given("Übung 1.png", noise(20, 20)))
        assert "format=webp" in request.value.url
        assert "metadata=strip" in request.value.url
        assert "variant=lightweight-x2" in request.value.url
        done(page, "Übung 1.png")
        assert row(page, "Übung").locator("[data-act=download]").get_attribute("download").endswith("x2.webp")


def test_progress_is_shown_tile_by_tile(visit, upscaler):
    """In words and as a bar, which a screen reader reads too."""

    def stop_at_third(_tile):
        if len(upscaler.calls) == 2:
            upscaler.gate.close()

    upscaler.fault = stop_at_third
    with visit() as page:
        choose(page, given())
        upscaler.gate.wait_until_reached()
        state, bar = row(page, "photo").locator(".item-state"), row(page, "photo").locator("progress")
        state.filter(has_text="2 of 6 tiles").wait_for()
        assert bar.get_attribute("aria-label") == "Progress of photo.png"
        assert bar.evaluate("bar => bar.position") == pytest.approx(1 / 3)
        shoot(page, "progress")
        upscaler.fault = lambda _tile: None
        upscaler.gate.open()
        done(page, "photo.png")
        assert not bar.is_visible()


def test_cancelling_stops_the_work_on_the_server(visit, upscaler):
    """The row says so, offers to try again, and then it is upscaled."""
    with visit() as page:
        upscaler.gate.close()
        choose(page, given())
        upscaler.gate.wait_until_reached()
        button(row(page, "photo"), "Cancel").click()
        row(page, "photo").get_by_text("Cancelled", exact=True).wait_for()
        upscaler.gate.open()
        button(row(page, "photo"), "Try again").click()
        done(page, "photo.png")
        assert len([tile for call in upscaler.calls for tile in call]) < 12  # six tiles, twice


def test_several_pictures_queue_up(visit, upscaler):
    """A row each, two under way, and one that is bad does not stop the others."""
    with visit() as page:
        upscaler.gate.close()
        choose(page, given("one.png"), given("bad.png", b"nonsense"), given("two.png"), given("three.png"))
        upscaler.gate.wait_until_reached()
        row(page, "three.png").get_by_text("Waiting for its turn").wait_for()
        button(row(page, "three.png"), "Cancel").click()
        upscaler.gate.open()
        done(page, "one.png")
        done(page, "two.png")
        assert page.locator(".item").count() == 4
        button(row(page, "three.png"), "Remove").click()
        assert page.locator(".item").count() == 3
        button(row(page, "one.png"), "Compare").click()
        page.locator("#shown-name").filter(has_text="one.png").wait_for()
        assert page.locator("#download-all").is_visible()
        shoot(page, "queue")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (given("no.png", b"nonsense"), "The format is not supported. This is not an image"),
        (given("cut.png", png(PICTURE)[:-40]), "The image is broken."),
        (given("huge.png", noise(1100, 1000)), "The image is too large."),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_an_error_is_told_in_words(visit, picture, words):
    """What is wrong and what to do, in the row and to a screen reader."""
    with visit() as page:
        choose(page, picture)
        state = row(page, picture["name"]).locator(".item-state").filter(has_text=words)
        state.wait_for()
        assert state.inner_text() in page.locator("[role=status]").inner_text()
        assert button(row(page, picture["name"]), "Remove").is_visible()


def test_a_server_that_is_gone_is_told_in_words(visit):
    """Not as an exception's name."""
    with visit() as page:
        page.route("**/v1/upscale?*", lambda route: route.abort())
        choose(page, given())
        row(page, "photo").get_by_text("The server cannot be reached").wait_for()
        page.unroute("**/v1/upscale?*")
        button(row(page, "photo"), "Try again").click()
        done(page, "photo.png")


def test_a_busy_server_is_asked_again(visit):
    """After the seconds that it names."""
    problem = {"code": "queue_full", "title": "The queue is full", "detail": "Later.", "status": 429}
    answers = [problem]

    def answer(route):
        if not answers:
            route.continue_()
            return
        headers = {"Content-Type": "application/problem+json", "Retry-After": "1"}
        route.fulfill(status=429, headers=headers, body=json.dumps(answers.pop()))

    with visit() as page:
        page.route("**/v1/upscale?*", answer)
        choose(page, given())
        row(page, "photo").get_by_text("Trying again in 1 s").wait_for()
        done(page, "photo.png")


def test_a_key_is_asked_for_where_one_is_needed(visit):
    """And used from then on."""
    with visit({"api_keys": "secret"}) as page:
        assert "A key is needed" in page.locator("#variant-list").inner_text()
        page.get_by_label("This server asks for a key").fill("secret")
        page.keyboard.press("Enter")
        page.locator(".variant").first.wait_for()
        choose(page, given())
        done(page, "photo.png")


def test_the_sample_is_upscaled(visit):
    """By one button, on the server."""
    with visit() as page:
        page.get_by_role("button", name="Try the sample").click()
        done(page, "sample.png")
        assert f"{SIZE[0]} × {SIZE[1]} → {2 * SIZE[0]} × {2 * SIZE[1]}" in page.locator("#shown-facts").inner_text()


DROP = """([kind, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
  document.body.dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
    : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(visit, kind):
    """Anywhere on the page."""
    with visit() as page:
        page.evaluate(DROP, [kind, list(png(noise(20, 20)))])
        done(page, f"{kind}.png")


def test_everything_is_done_by_keyboard(visit):
    """The sample, the line between before and after, zoom, pan, and the download, in the order of the page."""
    with visit() as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "choose"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "sample"
        page.keyboard.press("Enter")
        done(page, "sample.png")
        split = page.get_by_role("slider", name="Share of the picture that shows before")
        split.focus()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        assert split.get_attribute("aria-valuetext") == "30 % before"
        assert page.locator("#stage").evaluate("stage => stage.style.getPropertyValue('--split')") == "30%"
        page.keyboard.press("End")
        assert split.get_attribute("aria-valuetext") == "100 % before"
        stage = page.locator("#stage")
        stage.focus()
        for key in "++++++":
            page.keyboard.press(key)
        before = page.locator("#after img").evaluate("image => image.style.transform")
        page.keyboard.press("ArrowRight")
        assert page.locator("#after img").evaluate("image => image.style.transform") != before
        page.keyboard.press("0")
        assert page.locator("#zoom-fit").get_attribute("aria-pressed") == "true"
        with page.expect_download():
            page.locator("#download").focus()
            page.keyboard.press("Enter")


def shown_width(page):
    """Of the result on the screen, pixels."""
    return page.locator("#after img").bounding_box()["width"]


def test_one_to_one_shows_a_pixel_on_a_pixel(visit):
    """Both layers are as wide as the result, and dragging moves them together."""
    with visit() as page:
        choose(page, given("wide.png", noise(900, 1000)))
        done(page, "wide.png")
        page.locator("#shown-name").filter(has_text="wide.png").wait_for()
        page.get_by_role("button", name="1:1").click()
        assert shown_width(page) == 2000
        assert page.locator("#zoom-value").inner_text() == "100 %"
        box = page.locator("#stage").bounding_box()
        start = page.locator("#after img").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 140, box["y"] + 90)
        page.mouse.up()
        for layer in ("#before img", "#after img"):
            end = page.locator(layer).bounding_box()
            assert (end["x"] - start["x"], end["y"] - start["y"]) == (100, 50)
        page.get_by_role("button", name="Fit").click()
        assert shown_width(page) <= box["width"]


def split_of(page):
    """Where the line is, percent."""
    return float(page.locator("#split").input_value())


def test_the_line_follows_the_mouse_and_the_finger(visit):
    """Anywhere on the stage while the picture fits; the line itself when it is zoomed."""
    with visit(touch=True) as page:
        stage = page.locator("#stage")
        box = stage.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 60, steps=3)
        page.mouse.up()
        assert split_of(page) == pytest.approx(25, abs=1)
        page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + 60)
        assert split_of(page) == pytest.approx(75, abs=1)
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_role("button", name="Zoom in").click()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 90)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 90)
        page.mouse.up()
        assert split_of(page) == pytest.approx(50, abs=1)


A_FRAME = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
"""Moves are told to a page once for each of its frames."""


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


def middle(page, place):
    """Of an element on the screen."""
    box = page.locator(place).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_two_fingers_zoom_and_one_moves_what_is_zoomed(fingers):
    """The picture grows by as much as they part, about the place between them; the line and the page's own size stay."""
    with fingers() as (page, move):
        width, split = shown_width(page), split_of(page)
        x, y = middle(page, "#stage")
        move((x - 30, y))
        move((x - 30, y), (x + 30, y))
        for step in range(1, 7):
            move((x - 30 - 10 * step, y), (x + 30 + 10 * step, y))
        assert shown_width(page) == pytest.approx(3 * width, rel=0.01)
        assert middle(page, "#after img") == pytest.approx((x, y), abs=2)
        move((x - 90, y))
        move()
        move((x + 60, y + 40))
        for step in range(1, 5):
            move((x + 60 - 20 * step, y + 40 - 5 * step))
        move()
        for layer in ("#before img", "#after img"):
            assert middle(page, layer) == pytest.approx((x - 80, y - 20), abs=2)
        assert split_of(page) == split
        move((x - 100, y), (x + 100, y))
        for step in range(1, 9):
            move((x - 100 + 10 * step, y), (x + 100 - 10 * step, y))
        move()
        assert shown_width(page) == pytest.approx(width)
        assert page.evaluate("visualViewport.scale") == 1


def test_a_finger_that_goes_down_the_picture_scrolls_the_page(fingers):
    """While it fits; across, it moves the line."""
    with fingers() as (page, move):
        before = page.evaluate("scrollY")
        x, y = middle(page, "#stage")
        for step in range(9):
            move((x + 50, y - 20 * step))
        move()
        assert page.evaluate("scrollY") > before + 50
        x, y = middle(page, "#stage")
        for step in range(9):
            move((x - 10 * step, y))
        move()
        assert split_of(page) == pytest.approx(50 - 100 * 80 / page.locator("#stage").bounding_box()["width"], abs=2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_the_screen_and_axe_finds_nothing(visit, viewport, scheme):
    """At both widths and in both colour schemes, empty and in use, nothing scrolls sideways and no rule is broken."""
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    name = f"{'desk' if viewport is DESK else 'phone'}-{scheme}"
    with visit(viewport=viewport, scheme=scheme, script=axe) as page:
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 26)"
        assert dark == (scheme == "dark")
        shoot(page, f"{name}-first")
        assert broken_rules(page) == []
        page.get_by_text("Options").click()
        choose(
            page, given("sample.png", draw_sample()), given("a rather long name of a photo that is broken.jpg", b"no")
        )
        done(page, "sample.png")
        row(page, "long name").get_by_text("not supported").wait_for()
        assert broken_rules(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shoot(page, f"{name}-done")


def broken_rules(page):
    """What axe-core finds, as sentences."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{each['id']} ({each['impact']}): {each['nodes'][0]['html'][:200]}" for each in found]


def test_every_part_is_served_with_a_strict_policy(tmp_path):
    """Nothing inline, nothing from elsewhere, no framing; and nothing but the page's own files."""
    with listening(scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())) as address:
        parts = [f"/web/{path.name}" for path in WEB.iterdir() if path.is_file()]
        for path in ["/", "/web/sample.png", *parts]:
            answer = httpx.get(address + path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; "), path
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx.get(f"{address}/web/sample.png").content == draw_sample()
        for path in ("/web/nothing.js", "/web/..%2Fmain.py", "/web/__init__.py", "/web/"):
            assert httpx.get(address + path).status_code == 404, path


def test_the_picture_of_the_page_is_the_samples():
    """What stands for the result is twice the sample's size and, reduced again, the sample."""
    result = pixels_of((WEB / "sample-upscaled.png").read_bytes()).astype(float)
    sample = pixels_of(draw_sample()).astype(float)
    assert result.shape == (2 * SIZE[1], 2 * SIZE[0], 3)
    reduced = result.reshape(SIZE[1], 2, SIZE[0], 2, 3).mean(axis=(1, 3))
    assert 10 * np.log10(255**2 / np.mean((reduced - sample) ** 2)) > 28


FORM = """<form method="post" enctype="multipart/form-data" action="{}/v1/upscale?variant=x2">
<input type="file" name="file"><button>Send</button></form>"""


def test_a_plain_form_of_another_page_uploads(chromium, upscaler, tmp_path):
    """Without any script: the browser shows the image that comes back."""
    with listening(scripted_app(tmp_path, lightweight_x2=upscaler)) as address:
        page = chromium.new_page()
        page.set_content(FORM.format(address))
        page.locator("input").set_input_files([given("größe.png", noise(20, 30))])
        with page.expect_response("**/v1/upscale?variant=x2") as response:
            page.locator("button").click()
        page.wait_for_load_state()
        assert response.value.status == 200
        assert page.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [60, 40]
        page.close()
