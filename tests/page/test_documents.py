"""``/docs`` in a real Chromium: every address with its answers, and a form that sends."""

from __future__ import annotations

import json

import pytest

from app.routes.examples import EXAMPLE_ERRORS
from tests.browser import DESK, PHONE, broken_rules, given, shoot
from tests.service import noise

ELSEWHERE = {"not_found", "method_not_allowed", "bad_request", "misdirected_request", "headers_too_large"}


def operation(page, title):
    """The section of a method and an address."""
    return page.locator(".operation").filter(has=page.get_by_role("heading", name=title, exact=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_the_screen_and_axe_finds_nothing(visit, axe, viewport, scheme):
    """At both widths and in both colour schemes, with all that unfolds unfolded."""
    with visit(viewport=viewport, scheme=scheme, script=axe, path="docs") as page:
        shoot(page, f"docs-{'desk' if viewport is DESK else 'phone'}-{scheme}", whole=False)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert broken_rules(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_every_address_is_there_with_the_body_of_every_error(visit):
    """As openapi.json has them, each under a link of its own."""
    with visit(path="docs") as page:
        document = page.evaluate("fetch('openapi.json').then((answer) => answer.json())")
        count = sum(len(methods) for methods in document["paths"].values())
        assert page.locator(".operation").count() == page.locator("#contents a").count() == count
        text = page.locator("#operations").evaluate("operations => operations.textContent")
        elsewhere = set(page.locator("#elsewhere code").all_inner_texts())  # of no address
        assert elsewhere == ELSEWHERE
        shown = {error.code for error in EXAMPLE_ERRORS} - elsewhere
        assert {code for code in shown if f'"code": "{code}"' not in text} == set()
        assert page.get_by_role("link", name="Status").get_attribute("href") == "status"
        assert '"available": true' in text


def test_an_image_is_sent_with_its_options(visit):
    """The answer is shown with its headers, and the same as a command."""
    with visit(path="docs") as page:
        upscale = operation(page, "POST /v1/upscale")
        upscale.get_by_label("file", exact=True).set_input_files([given("it's.png", noise(20, 30))])
        upscale.get_by_label("format", exact=True).select_option("webp")
        upscale.get_by_label("quality", exact=True).fill("80")
        command = upscale.get_by_label("The same with curl").inner_text()
        assert command.startswith("curl -F file=@'it'\\''s.png' -o upscaled 'http://127.0.0.1:")
        assert command.endswith("/v1/upscale?format=webp&quality=80'")
        upscale.get_by_role("button", name="Send").click()
        upscale.locator(".output img").wait_for()
        assert upscale.locator(".output img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 60
        assert "x-swin2sr-variant: lightweight-x2" in upscale.locator(".output").inner_text()


def test_an_error_is_shown_as_it_came(visit):
    """Status and document."""
    with visit(path="docs") as page:
        one = operation(page, "GET /v1/variants/{name}")
        one.get_by_label("name", exact=True).fill("x9")
        one.get_by_role("button", name="Send").click()
        one.locator(".output .status").filter(has_text="404").wait_for()
        assert json.loads(one.locator(".output pre").first.inner_text())["code"] == "unknown_variant"


def test_a_key_is_sent_and_not_shown(visit):
    """Where the address needs one."""
    with visit({"api_keys": "secret-key"}, path="docs") as page:
        all_of_them = operation(page, "GET /v1/variants")
        page.get_by_label("Key, if one is needed").fill("secret-key")
        assert "Bearer KEY" in all_of_them.get_by_label("The same with curl").inner_text()
        all_of_them.get_by_role("button", name="Send").click()
        all_of_them.locator(".output .status").filter(has_text="200").wait_for()
