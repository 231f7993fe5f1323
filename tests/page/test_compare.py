"""Before and after on one stage: the line between them, zoom and pan, by mouse and by fingers."""

from __future__ import annotations

import pytest

from tests.browser import choose, done, given
from tests.service import noise


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


def middle(page, place):
    """Of an element on the screen."""
    box = page.locator(place).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_two_fingers_zoom_and_one_moves_what_is_zoomed(fingers):
    """The picture grows as they part, about the place between them; the line and the page's own size stay."""
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
