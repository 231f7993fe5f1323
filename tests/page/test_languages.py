"""The page's languages, its weight, and the page that tells the status."""

from __future__ import annotations

import json
import re
from string import Formatter

import pytest

from model.variants import VARIANTS
from tests.browser import DESK, PHONE, WEB, broken_rules, choose, done, given, shoot
from tests.listening import listening
from tests.service import noise, scripted_app

LANGUAGES = sorted(path.name.split(".")[1] for path in WEB.glob("text.*.json"))
ENGLISH = json.loads((WEB / "text.en.json").read_text("utf-8"))


def forms(string):
    """A string's forms: one, or one for each kind of number."""
    return string if isinstance(string, dict) else {"other": string}


def fields(string):
    """The values that a string shows."""
    return {field for form in forms(string).values() for _, field, _, _ in Formatter().parse(form) if field}


def test_the_page_has_seven_languages():
    """English, German, French, Spanish, Portuguese, Japanese and Chinese."""
    assert LANGUAGES == ["de", "en", "es", "fr", "ja", "pt", "zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_string(language):
    """With the same values in it, and none left empty."""
    strings = json.loads((WEB / f"text.{language}.json").read_text("utf-8"))
    assert list(strings) == list(ENGLISH)
    for key, string in strings.items():
        assert all(form.strip() for form in forms(string).values()), key
        assert "other" in forms(string), key
        assert fields(string) - {"name"} <= fields(ENGLISH[key]), key
        assert fields(ENGLISH[key]) - {"name", "count"} <= fields(string), key


def test_every_string_that_the_page_asks_for_is_there():
    """In the HTML and in the modules; and no string is left over."""
    text = "\n".join(path.read_text("utf-8") for path in WEB.iterdir() if path.suffix in (".html", ".js"))
    asked = set(re.findall(r'data-(?:text|label|alt|title|hint)="([^"]+)"', text)) | set(
        re.findall(r'\btext\("([^"]+)"', text)
    )
    assert asked <= set(ENGLISH)
    made = re.compile(r"(task|state|problem|status|variant)\.|server\.")
    assert {key for key in set(ENGLISH) - asked if not made.match(key)} == set()


@pytest.fixture
def abroad(chromium, upscaler, tmp_path):
    """Opens the page in a browser of some languages."""
    contexts = []

    def go(address, languages, viewport=DESK):
        context = chromium.new_context(viewport=viewport, locale=languages[0])
        context.add_init_script(
            f"Object.defineProperty(navigator, 'languages', {{get: () => {json.dumps(languages)}}})"
        )
        contexts.append(context)
        page = context.new_page()
        page.goto(address)
        page.locator("[aria-busy=false]").wait_for()
        return page

    with listening(scripted_app(tmp_path, lightweight_x2=upscaler)) as address:
        yield lambda *arguments, **more: go(address, *arguments, **more)
        for context in contexts:
            context.close()


@pytest.mark.parametrize(
    ("languages", "shown"),
    [
        (["de-CH"], "de"),
        (["fr-CA", "en"], "fr"),
        (["nl", "es-MX"], "es"),
        (["pt-BR"], "pt"),
        (["ja"], "ja"),
        (["zh-Hant-TW"], "zh"),
        (["nl"], "en"),
    ],
)
def test_the_first_language_of_the_reader_that_there_is(abroad, languages, shown):
    """Down the browser's list, else English; on a phone nothing scrolls sideways."""
    page = abroad(languages, viewport=PHONE)
    strings = json.loads((WEB / f"text.{shown}.json").read_text("utf-8"))
    assert page.locator("html").get_attribute("lang") == shown
    assert page.locator("label[for=choose]").inner_text() == strings["choose"]
    choose(page, given("bild.png", noise(20, 20)))
    page.locator(".item [data-act=download]:visible").filter(has_text=strings["download"]).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shoot(page, f"language-{shown}")


def test_every_variant_is_described_in_every_language(abroad):
    """English as the server does; own weights under an official name are described by the server."""
    assert {name: ENGLISH.get(f"variant.{name}") for name in VARIANTS} == {
        name: row.summary for name, row in VARIANTS.items()
    }
    page = abroad(["de"])
    assert "Verdoppelt ein sauberes Bild" in page.locator("#variant-list").inner_text()
    listing = page.evaluate("fetch('v1/variants').then((answer) => answer.json())")
    for each in listing["variants"]:
        each.update(replaces="official", summary="Our own.")
    page.route("**/v1/variants", lambda route: route.fulfill(json=listing))
    page.reload()
    page.locator("#variant-list").get_by_text("Our own.").first.wait_for()
    assert "Verdoppelt" not in page.locator("#variant-list").inner_text()


def test_plain_words_only(visit):
    """Nothing on the page needs to know HTTP."""
    with visit() as page:
        words = page.locator("body").inner_text() + json.dumps(ENGLISH)
        assert not re.search(r"multipart|form-data|Bearer|octet-stream", words)


def test_the_page_is_light(visit):
    """At most 13 requests and 300 kB until it can be used."""
    sizes = []
    with visit(path="#") as page:
        page.on("response", lambda response: sizes.append(len(response.body())))
        page.reload()
        page.locator("[aria-busy=false]").wait_for()
        page.wait_for_load_state("networkidle")
        assert len(sizes) <= 13
        assert sum(sizes) <= 300_000


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_status_page_is_for_people(visit, axe, viewport):
    """Whether the service is ready, and a table of its variants; axe finds nothing."""
    with visit(path="status", script=axe, viewport=viewport) as page:
        assert page.locator("#readiness").inner_text() == "Ready"
        line = page.locator("tr", has=page.get_by_role("rowheader", name="lightweight-x2"))
        assert "Enlarge" in line.inner_text()
        assert "ready" in line.inner_text()
        assert broken_rules(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shoot(page, f"status-{viewport['width']}")


def test_the_status_page_says_why_it_is_not_ready(visit):
    """With the reasons, and with the key if one is needed."""
    with visit({"api_keys": "secret-key"}, path="status") as page:
        page.get_by_label("This server asks for a key").fill("secret-key")
        page.keyboard.press("Enter")
        page.get_by_role("rowheader", name="lightweight-x2").wait_for()
        problem = {
            "code": "not_ready",
            "title": "Not ready",
            "status": 503,
            "detail": "x",
            "reasons": ["shutting down"],
        }
        page.route("**/health/ready", lambda route: route.fulfill(status=503, json=problem))
        page.reload()
        page.get_by_text("shutting down").wait_for()
        assert page.locator("#readiness").inner_text() == "Not ready"
        page.route("**/health/ready", lambda route: route.abort())
        page.reload()
        page.get_by_text("The server does not answer.").wait_for()


def test_a_result_after_restoring_says_so(visit):
    """The header of the response is shown with the result."""

    def answer(route):
        response = route.fetch()
        lines = b"\r\nx-swin2sr-restored: small-jpeg; quality=42\r\nx-swin2sr-variant:"
        route.fulfill(response=response, body=response.body().replace(b"\r\nx-swin2sr-variant:", lines))

    with visit() as page:
        page.route("**/v1/upscale?*", answer)
        choose(page, given("photo.png", noise(20, 20)))
        done(page, "photo.png")
        page.locator("#shown-notice").filter(
            has_text="JPEG artefacts were removed first (small-jpeg; quality=42)."
        ).wait_for()
