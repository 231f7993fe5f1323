"""What a person can ask for: sizes, formats, another variant, a copy; and what the page predicts."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest

from tests.browser import DESK, WEB, button, choose, done, given, row, shoot
from tests.listening import listening
from tests.page.file_sizes import FORMATS
from tests.scripted import ScriptedUpscaler
from tests.service import noise, scripted_app


def asked(page, set_up, picture=None):
    """The options of the request that follows from some choices."""
    if not page.locator("#size").is_visible():
        page.get_by_text("Options", exact=True).click()
    set_up()
    with page.expect_request("**/v1/upscale?*") as request:
        choose(page, picture or given("a.png", noise(8, 8)))
    return {name: values[0] for name, values in parse_qs(urlsplit(request.value.url).query).items()}


SIZES = [
    ("own", {}, {}),
    ("width", {}, {}),
    ("width", {"size-width": "1200"}, {"width": "1200"}),
    ("height", {"size-height": "900"}, {"height": "900"}),
    ("box", {"size-width": "1300", "size-height": "800"}, {"width": "1300", "height": "800"}),
    ("factor", {"size-number": "1.5"}, {"factor": "1.5"}),
    ("megapixels", {"size-number": "12"}, {"megapixels": "12"}),
]


def test_a_target_size_is_sent(visit):
    """Only the fields of the chosen kind are shown and sent; without a number nothing is."""
    with visit() as page:
        for choice, fields, sent in SIZES:

            def set_up(choice=choice, fields=fields):
                page.locator("#size").select_option(choice)
                for field, value in fields.items():
                    page.locator(f"#{field}").fill(value)

            options = asked(page, set_up)
            assert options == {"format": "png", "variant": "lightweight-x2", "restore": "auto", **sent}
            assert page.locator("#size-sides").is_visible() == (choice in ("width", "height", "box"))
            assert page.locator("#size-number").is_visible() == (choice in ("factor", "megapixels"))


def test_every_other_option_is_sent(visit):
    """What differs from its default, under the names of the interface."""

    def set_up():
        page.locator("#size").select_option("box")
        page.locator("#size-width").fill("30")
        page.locator("#size-height").fill("20")
        page.locator("#fit").select_option("cover")
        page.locator("#enlarge").check()
        page.locator("#format").select_option("jpeg")
        page.locator("#quality").fill("70")
        page.locator("#max-bytes").fill("1.5")
        page.locator("#restore").select_option("always")
        page.locator("#strength").fill("40")
        page.locator("#ensemble").check()
        page.locator("#strip").check()

    with visit() as page:
        options = asked(page, set_up)
        assert options == {
            "variant": "lightweight-x2",
            "width": "30",
            "height": "20",
            "fit": "cover",
            "enlarge": "true",
            "format": "jpeg",
            "quality": "70",
            "max_bytes": "1500000",
            "restore": "always",
            "strength": "0.4",
            "ensemble": "true",
            "metadata": "strip",
        }


def test_every_format_can_be_chosen(visit):
    """The quality is offered for lossy ones only."""
    with visit() as page:
        for name in ("png", "jpeg", "webp", "avif", "tiff", "jxl", "same"):
            options = asked(page, lambda name=name: page.locator("#format").select_option(name))
            assert options["format"] == name
            assert page.locator("#quality-row").is_visible() == (name not in ("png", "tiff"))


def test_jpeg_xl_is_not_offered_where_it_cannot_be_written(visit, monkeypatch):
    """The service names its formats in the list of variants."""
    monkeypatch.setattr("app.routes.variants.writable", lambda: ["png", "jpeg"])
    with visit() as page:
        page.get_by_text("Options", exact=True).click()
        page.wait_for_function("document.querySelector('#format option[value=jxl]').disabled")
        assert page.locator("#format option:not([hidden])").count() == 6


def test_a_very_large_png_is_asked_about_first(visit):
    """With its expected size; WebP is one click away, and nothing is sent before."""
    sent = []
    with visit() as page:
        page.on("request", lambda request: sent.append(request.url) if "/v1/upscale" in request.url else None)
        page.get_by_text("Options", exact=True).click()
        page.locator("#size").select_option("megapixels")
        page.locator("#size-number").fill("150")
        choose(page, given("poster.png", noise(40, 60)))
        row(page, "poster").get_by_text("The result will have about 240 MB").wait_for()
        assert sent == []
        button(row(page, "poster"), "Use WebP").click()
        row(page, "poster").get_by_text("not").wait_for()
        assert "format=webp" in sent[0]


def with_speed(page, speed):
    """Let the service tell how fast a variant was."""
    listing = httpx.get(f"{page.url}v1/variants").json()
    for each in listing["variants"]:
        each["pixels_per_second"] = speed
    page.route("**/v1/variants", lambda route: route.fulfill(json=listing))
    page.reload()
    page.locator("[aria-busy=false]").wait_for()


def test_the_time_is_estimated_before_and_during_the_work(visit, upscaler):
    """From the measured speed of the variant, for a row and for all of them."""
    with visit() as page:
        with_speed(page, 1000.0)
        upscaler.gate.close()
        choose(page, *[given(f"{number}.png", noise(100, 100)) for number in range(3)])
        row(page, "2.png").get_by_text("Waiting · about 10 s").wait_for()
        row(page, "0.png").get_by_text("about 10 s left").wait_for()
        page.locator("#queue-state").filter(has_text="0 of 3 done · about 30 s left").wait_for()
        upscaler.gate.open()
        done(page, "2.png")
        assert not page.locator("#queue-bar").is_visible()


def test_every_pass_counts_for_the_estimate(visit, upscaler):
    """The second pass of a doubling reads four times the pixels; the caption has the time and the size of the file."""
    with visit() as page:
        with_speed(page, 1000.0)
        upscaler.gate.close()
        page.get_by_text("Options", exact=True).click()
        page.locator("#size").select_option("width")
        assert page.locator("#size-width").get_attribute("placeholder") == "width in pixels"
        page.locator("#size-width").fill("400")
        choose(page, given(pixels=noise(100, 100)))
        page.locator("#shown-facts").filter(has_text="about 50 s").wait_for()
        assert "about 256 kB" in page.locator("#shown-facts").inner_text()


def test_quality_and_restoring_count_for_the_estimate(visit, upscaler):
    """A lower quality makes a smaller file, and removing compression artefacts first is a pass of its own."""
    with visit() as page:
        with_speed(page, 1000.0)
        upscaler.gate.close()
        page.get_by_text("Options", exact=True).click()
        page.locator("#format").select_option("jpeg")
        choose(page, given(pixels=noise(100, 100)))
        page.locator("#shown-facts").filter(has_text="about 18 kB").wait_for()
        page.locator("#quality").fill("50")
        page.locator("#restore").select_option("always")
        choose(page, given("other.png", noise(100, 100)))
        row(page, "other.png").click()
        page.locator("#shown-facts").filter(has_text="about 20 s").wait_for()
        assert "about 5 kB" in page.locator("#shown-facts").inner_text()


def test_every_format_has_a_file_size():
    """The page can estimate each format that is measured."""
    [table] = re.findall(r"BYTES_PER_PIXEL = \{(.*)\}", (WEB / "choices.js").read_text("utf-8"))
    assert [entry.split(":")[0].strip() for entry in table.split(",")] == list(FORMATS)


def test_another_variant_is_tried_and_compared_on_one_stage(chromium, tmp_path):
    """Without choosing the file again."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler(), realworld_x4=ScriptedUpscaler(scale=4))
    with listening(app) as address:
        page = chromium.new_context(viewport=DESK).new_page()
        page.goto(address)
        page.locator("[aria-busy=false]").wait_for()
        choose(page, given("photo.png", noise(60, 80)))
        done(page, "photo.png")
        page.locator("#other").select_option("realworld-x4")
        page.locator(".item").nth(1).get_by_text("realworld-x4").wait_for()
        page.locator("#shown-facts").filter(has_text="realworld-x4").wait_for()
        page.locator("#against").select_option("lightweight-x2")
        page.locator("#tag-before").filter(has_text="lightweight-x2").wait_for()
        assert page.locator("#tag-after").inner_text() == "realworld-x4"
        boxes = [page.locator(f"#{layer} img").bounding_box() for layer in ("before", "after")]
        assert boxes[0] == boxes[1]
        shoot(page, "two-variants")
        page.context.close()


def test_a_result_is_copied_as_png(visit):
    """Whatever its format."""
    with visit() as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_text("Options", exact=True).click()
        page.locator("#format").select_option("webp")
        choose(page, given("photo.png", noise(20, 30)))
        done(page, "photo.png")
        page.locator("#copy").click()
        page.locator("[role=status]").filter(has_text="was copied").wait_for()
        assert "was copied" in page.locator("#shown-notice").inner_text()
        size = page.evaluate(
            """async () => {
              const [item] = await navigator.clipboard.read();
              const bitmap = await createImageBitmap(await item.getType("image/png"));
              return [bitmap.width, bitmap.height];
            }"""
        )
        assert size == [60, 40]


def test_a_large_result_is_first_shown_one_to_one_where_the_detail_is(visit):
    """A flat picture with one busy corner: that corner is on the stage."""
    picture = np.full((800, 1200, 3), 128, np.uint8)
    picture[600:750, 900:1150] = noise(150, 250)
    with visit(viewport=DESK) as page:
        choose(page, given("detail.png", picture))
        done(page, "detail.png")
        page.locator("#zoom-one[aria-pressed=true]").wait_for()
        stage, image = (page.locator(name).bounding_box() for name in ("#stage", "#after img"))
        middle = [
            (stage[axis] + stage[side] / 2 - image[axis]) / image[side]
            for axis, side in (("x", "width"), ("y", "height"))
        ]
        assert middle == pytest.approx([1025 / 1200, 675 / 800], abs=0.1)
        page.get_by_role("button", name="Fit").click()
        assert page.locator("#after img").bounding_box()["width"] <= stage["width"] + 1
