"""The page in a real Chromium: what a person sees and does, by mouse, by touch, and without either.

Screenshots land in ``build/screenshots``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.browser import (
    DESK,
    PHONE,
    PICTURE,
    SAMPLE_SIZE,
    WEB,
    broken_rules,
    button,
    choose,
    done,
    given,
    row,
    shoot,
)
from tests.chaos.metrics import MetricsSnapshot
from tests.listening import listening
from tests.service import enlarged, noise, pixels_of, png, scripted_app


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
        assert "restore=auto" in request.value.url  # for a variant's name, the service restores only if it is asked to
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
    """Tiles that wait never run. The row says so, offers to try again, and then the picture is upscaled."""
    with visit() as page:
        upscaler.gate.close()
        choose(page, given())
        upscaler.gate.wait_until_reached()
        button(row(page, "photo"), "Cancel").click()
        row(page, "photo").get_by_text("Cancelled", exact=True).wait_for()
        while not MetricsSnapshot(page.url.rstrip("/")).is_quiet():
            pass  # the server has not noticed yet that the page left
        upscaler.gate.open()
        button(row(page, "photo"), "Try again").click()
        done(page, "photo.png")
        assert [len(call) for call in upscaler.calls] == [1] * 7  # the tile that ran, then all six


def test_several_pictures_queue_up(visit, upscaler):
    """A row each, two under way, and one that is bad does not stop the others."""
    with visit() as page:
        upscaler.gate.close()
        choose(page, given("one.png"), given("bad.png", b"nonsense"), given("two.png"), given("three.png"))
        upscaler.gate.wait_until_reached()
        row(page, "three.png").get_by_text("Waiting").wait_for()
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
        (given("no.png", b"nonsense"), "The format is not supported."),
        (given("no.pdf", b"%PDF-1.4") | {"mimeType": "application/pdf"}, "The format is not supported. This is a PDF"),
        (given("cut.png", png(PICTURE)[:-40]), "The picture is damaged."),
        (given("huge.png", noise(1100, 1000)), "The picture is too large."),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_an_error_is_shown_as_text(visit, picture, words):
    """What is wrong and what to do, in the row, on the stage and to a screen reader; no word of HTTP."""
    with visit() as page:
        choose(page, picture)
        state = row(page, picture["name"]).locator(".item-state").filter(has_text=words)
        state.wait_for()
        assert state.inner_text() in page.locator("[role=status]").inner_text()
        assert page.locator("#stage-words").inner_text() == state.inner_text()
        assert "multipart" not in state.inner_text()
        assert button(row(page, picture["name"]), "Remove").is_visible()


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
    with visit({"api_keys": "secret-key"}) as page:
        assert "A key is needed" in page.locator("#variant-list").inner_text()
        page.get_by_label("This server asks for a key").fill("secret-key")
        page.keyboard.press("Enter")
        page.locator(".variant").first.wait_for()
        choose(page, given())
        done(page, "photo.png")


def test_the_sample_is_upscaled(visit):
    """By one button, on the server."""
    with visit() as page:
        page.get_by_role("button", name="Try the sample").click()
        done(page, "sample.png")
        assert (
            f"{SAMPLE_SIZE[0]} × {SAMPLE_SIZE[1]} → {2 * SAMPLE_SIZE[0]} × {2 * SAMPLE_SIZE[1]}"
            in page.locator("#shown-facts").inner_text()
        )


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
        split = page.get_by_role("slider", name="Position between before and after")
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_the_screen_and_axe_finds_nothing(visit, axe, viewport, scheme):
    """At both widths and in both colour schemes, empty and in use, nothing scrolls sideways and no rule is broken."""
    name = f"{'desk' if viewport is DESK else 'phone'}-{scheme}"
    with visit(viewport=viewport, scheme=scheme, script=axe) as page:
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 26)"
        assert dark == (scheme == "dark")
        shoot(page, f"{name}-first")
        assert broken_rules(page) == []
        page.get_by_text("Options").click()
        choose(
            page,
            given("sample.png", (WEB / "sample.png").read_bytes()),
            given("a rather long name of a photo that is broken.jpg", b"no"),
        )
        done(page, "sample.png")
        row(page, "long name").get_by_text("not supported").wait_for()
        assert broken_rules(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shoot(page, f"{name}-done")


FORM = """<form method="post" enctype="multipart/form-data" action="{}/v1/upscale?variant=x2">
<input type="file" name="file"><button>Send</button></form>"""


def test_a_plain_form_of_another_page_uploads(chromium, upscaler, tmp_path):
    """Without any script: the browser shows the image of the response."""
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
