"""What the page keeps: results until they are saved, choices between visits, and pictures while the server is gone."""

from __future__ import annotations

import io
import json
import signal
import zipfile
from pathlib import Path

import pytest

from tests.browser import DESK, PHONE, PICTURE, button, choose, done, given, row, shoot
from tests.scripted_server import ScriptedServer
from tests.server import free_ports
from tests.service import noise, pixels_of

NAMES = [f"photo {number}.png" for number in range(12)]


def test_twelve_results_are_saved_as_one_zip(visit):
    """Stored, with the results' own names, each of them whole."""
    with visit() as page:
        choose(page, *[given(name, noise(16, 20 + number)) for number, name in enumerate(NAMES)])
        page.get_by_role("button", name="Download 12 as ZIP").wait_for()
        with page.expect_download() as download:
            page.locator("#download-all").click()
        assert download.value.suggested_filename == "swin2sr.zip"
        with zipfile.ZipFile(Path(download.value.path())) as archive:
            assert archive.testzip() is None
            infos = archive.infolist()
            sizes = [pixels_of(archive.read(info)).shape[1] for info in infos]
        assert [info.filename for info in infos] == [f"photo {number}-lightweight-x2.png" for number in range(12)]
        assert sizes == [2 * (20 + number) for number in range(12)]
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


ZIPPED = """async (names) => {
  const { zip, divide } = await import("./web/zip.js");
  const files = names.map((name) => ({ name, blob: new Blob([name]) }));
  const large = [3e9, 2e9, 1e9, 5e9].map((size) => ({ blob: { size } }));
  const archive = await zip(files);
  const groups = divide(large).map((group) => group.length);
  return { bytes: [...new Uint8Array(await archive.arrayBuffer())], groups };
}"""


def test_a_zip_keeps_files_of_the_same_name_apart(visit):
    """Names in any script stay; what does not fit into 4 GB goes into further archives."""
    with visit() as page:
        made = page.evaluate(ZIPPED, ["größe.png", "größe.png", "写真.png", "noending", "noending"])
        with zipfile.ZipFile(io.BytesIO(bytes(made["bytes"]))) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["größe.png", "größe-2.png", "写真.png", "noending", "noending-2"]
        assert made["groups"] == [1, 2, 1]


def asks_before_leaving(page):
    """Whether the browser asks when the page is left."""
    return page.evaluate("!window.dispatchEvent(new Event('beforeunload', {cancelable: true}))")


def test_leaving_asks_while_a_result_is_not_saved(visit, upscaler):
    """Not before, and not after it was downloaded."""
    with visit() as page:
        assert not asks_before_leaving(page)
        upscaler.gate.close()
        choose(page, given())
        assert asks_before_leaving(page)
        upscaler.gate.open()
        done(page, "photo.png")
        assert asks_before_leaving(page)
        with page.expect_download():
            page.locator("#download").click()
        assert not asks_before_leaving(page)


def test_the_other_pages_open_beside_this_one(visit):
    """So that a look at the status loses nothing."""
    with visit() as page:
        for link in page.locator("nav a").all():
            with page.context.expect_page() as opened:
                link.click()
            opened.value.wait_for_load_state()
            assert "/v1/" not in opened.value.url
            opened.value.close()
        assert page.locator("#choose").count() == 1


def test_choices_are_remembered(visit):
    """The variant, the format and the options, for the next visit."""
    with visit() as page:
        page.locator("#variant-list input[value=small-x4]").check()
        page.get_by_text("Options").click()
        page.locator("#format").select_option("webp")
        page.locator("#quality").fill("80")
        page.locator("#strip").check()
        page.reload()
        page.locator("[aria-busy=false]").wait_for()
        assert page.locator("#variant-list input:checked").get_attribute("value") == "small-x4"
        assert page.locator("#format").input_value() == "webp"
        assert page.locator("#strip").is_checked()
        with page.expect_request("**/v1/upscale?*") as request:
            choose(page, given("a.png", noise(8, 8)))
        assert {"variant=small-x4", "format=webp", "quality=80"} <= set(request.value.url.split("?")[1].split("&"))


def test_a_remembered_choice_that_is_no_longer_offered_is_replaced(visit):
    """By the first that is offered, here for `restore`, and requests name it."""
    with visit(script="""localStorage.setItem("swin2sr-choices", '{"restore": "", "format": "webp"}')""") as page:
        assert page.locator("#restore").input_value() == "auto"
        with page.expect_request("**/v1/upscale?*") as request:
            choose(page, given("a.png", noise(8, 8)))
        assert {"restore=auto", "format=webp"} <= set(request.value.url.split("?")[1].split("&"))


def test_a_restart_of_the_server_loses_no_picture(chromium):
    """Twelve rows wait while it is gone, say so, and are upscaled when it is back."""
    [port] = free_ports(1)
    command = {"port": port, "drain_timeout_ms": 0}
    page = chromium.new_context(viewport=DESK).new_page()
    with ScriptedServer(seconds=100, **command) as server:
        page.goto(server.url)
        page.locator("[aria-busy=false]").wait_for()
        choose(page, *[given(name, noise(64, 64)) for name in NAMES])
        button(row(page, NAMES[0]), "Download").wait_for()
        server.signal(signal.SIGKILL)
        server.wait()
        page.locator("#gone").wait_for()
        assert page.locator(".item.failed").count() == 0
        shoot(page, "server-gone")
    with ScriptedServer(seconds=1, **command):
        for name in NAMES:
            done(page, name)
        assert not page.locator("#gone").is_visible()
    page.context.close()


def test_the_stage_leaves_a_picture_that_is_removed(visit):
    """It shows another one, whose download works, and in the end the sample."""
    with visit() as page:
        choose(page, given("one.png"), given("two.png"))
        done(page, "one.png")
        done(page, "two.png")
        page.locator("#shown-name").filter(has_text="one.png").wait_for()
        button(row(page, "one.png"), "Remove").click()
        page.locator("#shown-name").filter(has_text="two.png").wait_for()
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "two-lightweight-x2.png"
        assert download.value.failure() is None
        button(row(page, "two.png"), "Remove").click()
        page.locator("#shown-name").filter(has_text="The sample").wait_for()
        assert not page.locator("#download").is_visible()


def test_a_removed_result_is_not_compared_with(visit):
    """The list of others on the stage follows the rows."""
    with visit() as page:
        choose(page, given("one.png"))
        done(page, "one.png")
        page.locator("#other").select_option("lightweight-x2")
        page.locator("#against-row").wait_for()
        page.locator(".item").first.locator("[data-act=remove]").click()
        page.locator("#against-row").wait_for(state="hidden")
        assert page.locator("#shown-name").inner_text() == "one.png"


def bad_gateway(status):
    """What answers a request in the server's place, with this status."""
    return lambda route: route.fulfill(status=status, body="<h1>Bad Gateway</h1>")


def test_a_proxy_without_a_server_behind_it_is_waited_for(visit):
    """Its own page is no answer of the service."""
    with visit() as page:
        for status in (502, 503, 504):
            page.route("**/v1/upscale?*", bad_gateway(status))
            page.route("**/health/ready", lambda route: route.abort())
            choose(page, given(f"{status}.png"))
            row(page, f"{status}").get_by_text("Waiting for the server").wait_for()
            page.unroute("**/v1/upscale?*")
            page.unroute("**/health/ready")
            done(page, f"{status}.png")


def test_what_a_proxy_refuses_for_good_fails(visit):
    """413 of a proxy is not repeated for ever."""
    with visit() as page:
        page.route("**/v1/upscale?*", lambda route: route.fulfill(status=413, body="<h1>Too large</h1>"))
        choose(page, given())
        row(page, "photo").get_by_text("Unexpected response").wait_for()
        assert "413" in row(page, "photo").inner_text()


def test_a_picture_that_ends_the_server_each_time_fails_in_the_end(visit):
    """Five times, so that it does not end it for ever."""
    with visit() as page:
        asked = []
        page.route("**/v1/upscale?*", lambda route: (asked.append(1), route.abort()))
        page.clock.install()
        choose(page, given())
        for _ in range(12):
            page.clock.run_for(2100)
            page.wait_for_timeout(50)
        row(page, "photo").get_by_text("The server cannot be reached").wait_for()
        assert len(asked) == 6


def test_everything_that_failed_is_retried_at_once(visit):
    """By one button, which is there when two failed."""
    broken = {"code": "internal_error", "title": "Internal error", "detail": "See the log.", "status": 500}
    headers = {"Content-Type": "application/problem+json"}
    with visit() as page:
        page.route("**/v1/upscale?*", lambda route: route.fulfill(status=500, headers=headers, body=json.dumps(broken)))
        choose(page, given("one.png"), given("two.png"))
        page.locator("#retry-all").wait_for()
        page.unroute("**/v1/upscale?*")
        page.locator("#retry-all").click()
        done(page, "one.png")
        done(page, "two.png")


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 640}], ids=["phone", "laptop"])
def test_a_chosen_picture_is_on_the_screen_at_once(visit, upscaler, viewport):
    """On the stage, with its progress over it, the queue in view, and a count in the title."""
    with visit(viewport=viewport) as page:
        upscaler.gate.close()
        choose(page, given("photo.png", PICTURE), given("next.png", PICTURE))
        page.locator("#stage-state").filter(has_text="Computing").wait_for()
        assert page.locator("#shown-name").inner_text() == "photo.png"
        assert page.locator("#after img").get_attribute("src").startswith("blob:")
        height = viewport["height"]
        for part in ("#stage", "#queue-title"):
            box = page.locator(part).bounding_box()
            assert 0 <= box["y"] < height, part
        assert page.title() == "(0/2) Swin2SR"
        shoot(page, f"chosen-{viewport['width']}", whole=False)
        upscaler.gate.open()
        done(page, "next.png")
        assert page.title() == "Swin2SR"
