"""What the page shows for variants that are ready, loading, failed and not on this server."""

from __future__ import annotations

import httpx
import pytest

from tests.browser import broken_rules, shoot


def change(page, listing, **states):
    """Change what the service says of variants (``classical_x4=`` is ``classical-x4``)."""
    for each in listing["variants"]:
        each.update(states.get(each["name"].replace("-", "_"), {}))
    page.route("**/v1/variants", lambda route: route.fulfill(json=listing))


@pytest.fixture
def told(visit, axe):
    """The page of a service that reports one variant as loading and another as failed."""
    with visit(script=axe) as page:
        listing = httpx.get(f"{page.url}v1/variants").json()
        coming = {"state": "loading", "reason": "being fetched: 2.0 of 48.9 MB"}
        failed = {"state": "failed", "reason": "could not be fetched: the hub answered 500"}
        change(page, listing, classical_x2=coming, jpeg=failed)
        page.reload()
        page.locator("#troubled-list li").first.wait_for()
        yield page, listing


def test_unavailable_variants_are_shown_with_the_reason(told):
    """And not offered; what is not on the server is listed apart, with the command that brings it."""
    page, _listing = told
    [offered] = page.locator("label.variant", has=page.locator("input[value=lightweight-x2]")).all_inner_texts()
    assert [line for line in offered.splitlines() if line][:2] == ["Enlarge", "× 2"]
    assert "lightweight-x2" in offered
    assert page.locator("#variant-list input[value=classical-x2], #variant-list input[value=jpeg]").count() == 0
    lines = page.locator("#troubled-list li").all_inner_texts()
    assert [line.split() for line in lines] == [
        ["classical-x2", "loading", "Being", "fetched:", "2.0", "of", "48.9", "MB"],
        ["jpeg", "failed", "Could", "not", "be", "fetched:", "the", "hub", "answered", "500"],
    ]
    page.get_by_text("More, after a download").click()
    assert "realworld-x4" in page.locator("#absent-list").inner_text()
    assert "jpeg" not in page.locator("#absent-list").inner_text().splitlines()
    assert broken_rules(page) == []
    shoot(page, "variants")


def test_what_was_on_its_way_is_offered_when_it_is_there(told):
    """Without a reload, and without disturbing the choice or the focus of who is choosing."""
    page, listing = told
    page.locator("#variant-list input[value=small-x2]").check()
    change(page, listing, classical_x2={"state": "loading", "reason": "being fetched: 40.0 of 48.9 MB"})
    page.get_by_text("40.0 of 48.9 MB").wait_for()
    change(page, listing, classical_x2={"state": "ready", "reason": None, "available": True})
    page.locator("#variant-list input[value=classical-x2]").wait_for()
    assert page.evaluate("document.activeElement.value") == "small-x2"
    assert page.locator("#variant-list input:checked").get_attribute("value") == "small-x2"
    assert "classical-x2" not in page.locator("#troubled-list").inner_text()


def test_a_server_that_was_away_is_asked_again(visit):
    """Its variants come without a reload."""
    with visit() as page:
        page.route("**/v1/variants", lambda route: route.abort())
        page.reload()
        page.get_by_text("The server cannot be reached.").wait_for()
        page.unroute("**/v1/variants")
        page.locator("#variant-list input[value=lightweight-x2]").wait_for()
