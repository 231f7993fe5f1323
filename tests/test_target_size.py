"""The size that options ask for, and the cheapest passes that reach it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ImageTooLarge, InvalidOption
from app.imaging.target_size import MAX_PASSES, Pass, choose_passes, find_target
from app.schemas import UpscaleOptions

X1, X2, X4 = Pass("jpeg", 1), Pass("x2", 2), Pass("x4", 4)


@pytest.mark.parametrize(
    ("options", "size", "ratio"),
    [
        ({"width": 300}, (150, 300), 1.5),
        ({"height": 100}, (100, 200), 1),
        ({"width": 300, "height": 100}, (100, 200), 1),
        ({"width": 100, "height": 100}, (50, 100), 0.5),
        ({"width": 300, "height": 300, "fit": "cover"}, (300, 300), 3),
        ({"width": 300, "height": 300, "fit": "exact"}, (300, 300), 3),
        ({"factor": 1.5}, (150, 300), 1.5),
        ({"megapixels": 0.08}, (200, 400), 2),
        ({"width": 1}, (1, 1), 1 / 200),
        ({"factor": 0.001}, (1, 1), 0.001),
        ({"factor": 2.001}, (200, 400), 2),
    ],
)
def test_each_option_asks_for_its_size(options, size, ratio):
    """Of an image of 200x100 pixels: height and width of the result, and how much has to be enlarged."""
    target = find_target(100, 200, UpscaleOptions(**options))
    assert (target.height, target.width) == size
    assert target.ratio == pytest.approx(ratio)


def test_without_an_option_there_is_no_target():
    """The variant's own scale decides."""
    assert find_target(100, 200, UpscaleOptions()) is None


def test_cover_crops_the_centre():
    """Of an image twice as wide as high, a square keeps the middle half."""
    target = find_target(100, 200, UpscaleOptions(width=300, height=300, fit="cover"))
    assert target.crop == (0.25, 0, 0.75, 1)
    assert find_target(100, 200, UpscaleOptions(width=300, height=300, fit="exact")).crop == (0, 0, 1, 1)


def choose(options, *, firsts=(X2,), others=(X2, X4), size=(100, 100), limit=10**9):
    chosen = UpscaleOptions(**options)
    target = find_target(*size, chosen)
    passes = choose_passes(firsts, others, size, target, max_pixels=limit, enlarge=chosen.enlarge)
    return [each.variant for each in passes]


@pytest.mark.parametrize(
    ("factor", "passes"),
    [(0.5, ["x2"]), (2, ["x2"]), (3, ["x2", "x2"]), (4, ["x2", "x2"]), (8, ["x2", "x4"]), (9, ["x2", "x2", "x4"])],
)
def test_a_named_variant_is_the_first_pass(factor, passes):
    """The next passes are the cheapest that reach the size; a smaller size takes one pass and is reduced."""
    assert choose({"factor": factor}) == passes


@pytest.mark.parametrize(
    ("factor", "passes"), [(2, ["x2"]), (3, ["x4"]), (4, ["x4"]), (8, ["x2", "x4"]), (16, ["x4", "x4"])]
)
def test_an_alias_may_choose_another_scale_first(factor, passes):
    """x4 alone is cheaper than x2 twice."""
    assert choose({"factor": factor}, firsts=(X2, X2, X4)) == passes


def test_without_a_target_the_requested_variant_runs_once():
    """An alias does not change its scale by itself."""
    assert choose({}, firsts=(X2, X4)) == ["x2"]


def test_a_restoring_variant_is_followed_by_enlarging_ones():
    """It is a pass like any other."""
    assert choose({"factor": 2}, firsts=(X1,)) == ["jpeg", "x2"]
    with pytest.raises(InvalidOption):
        choose({"factor": 2}, firsts=(X1,), others=())


def test_what_no_sequence_reaches_is_refused_with_the_largest_size():
    """422 names the option, its value, and the largest size in pixels."""
    with pytest.raises(InvalidOption, match=r"width=9000 .* x2 reaches for this image: 800x800 pixels") as error:
        choose({"width": 9000}, others=(X2,))
    facts = error.value.facts
    assert (facts["limit"], facts["actual"]) == (8, 90)
    assert (facts["max_width"], facts["max_height"]) == (800, 800)
    assert choose({"width": 9000, "enlarge": True}, others=(X2,)) == ["x2", "x2", "x2"]


def test_every_intermediate_image_is_bounded():
    """A sequence that makes too large an image is not used, even if its result is reduced afterwards."""
    assert choose({"factor": 5}, limit=800 * 800) == ["x2", "x4"]
    with pytest.raises(InvalidOption, match="400x400"):
        choose({"factor": 5}, limit=799 * 799)


def test_one_pass_over_the_limit_and_a_target_over_it_are_too_large():
    """413 with both numbers."""
    with pytest.raises(ImageTooLarge) as error:
        choose({}, limit=39_999)
    assert error.value.facts == {"limit": 39_999, "actual": 40_000}
    with pytest.raises(ImageTooLarge) as error:
        choose({"width": 300, "enlarge": True}, limit=89_999)
    assert error.value.facts == {"limit": 89_999, "actual": 90_000}


@given(st.floats(0.1, 70), st.sampled_from([(X2,), (X2, X4), (X4,)]), st.integers(100, 50_000))
def test_the_cheapest_sequence_is_found(factor, others, side):
    """Against a search of all: at most three passes, none larger than the limit, and no cheaper one reaches it."""
    limit = side * side

    def product(passes):
        return math.prod(each.scale for each in passes)

    def cost(passes):
        return sum(product(passes[:index]) ** 2 for index in range(len(passes)))

    every = [[X2, *more] for count in range(MAX_PASSES) for more in itertools.product(others, repeat=count)]
    sides = [100 * product(each) for each in every]
    fitting = [each for each, last in zip(every, sides, strict=True) if round(100 * factor) <= last <= side]
    try:
        chosen = choose({"factor": factor}, others=others, limit=limit)
    except (InvalidOption, ImageTooLarge):
        assert not fitting or (round(100 * factor)) ** 2 > limit
        return
    scales = {"x2": X2, "x4": X4}
    assert cost([scales[name] for name in chosen]) == min(map(cost, fitting))
