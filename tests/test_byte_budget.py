"""Budgets of bytes: first come, first served, and no bytes are counted twice or lost."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import ImageTooLarge
from app.http.byte_budget import ByteBudget


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), 20))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_fits_is_held_until_the_end_of_the_block():
    """And is free again afterwards."""
    budget = ByteBudget(10)

    async def scenario():
        with budget.open() as one, budget.open() as other:
            await one.reserve(4)
            await other.reserve(6)
            assert budget.held == 10
            one.set(1)
            assert budget.held == 7
        assert budget.held == 0

    run(scenario)


def test_what_does_not_fit_waits_in_its_order():
    """A small request behind a large one does not overtake it."""
    budget, order = ByteBudget(10), []

    async def take(name, amount):
        with budget.open() as reservation:
            await reservation.reserve(amount)
            order.append(name)
            await asyncio.sleep(0)

    async def scenario():
        with budget.open() as held:
            await held.reserve(8)
            tasks = [asyncio.create_task(take(*each)) for each in (("large", 9), ("small", 1))]
            await settle()
            assert order == []
        await asyncio.gather(*tasks)
        assert order == ["large", "small"]
        assert budget.held == 0

    run(scenario)


def test_one_that_is_larger_than_all_is_admitted_alone():
    """When nothing else is held."""
    budget = ByteBudget(10)

    async def scenario():
        with budget.open() as small, budget.open() as giant:
            await small.reserve(1)
            task = asyncio.create_task(giant.reserve(100))
            await settle()
            assert not task.done()
            small.set(0)
            await task
            assert budget.held == 100

    run(scenario)


def test_a_cancelled_request_delays_no_other():
    """The next one gets its turn, and nothing is held for who left, at whatever moment."""
    budget = ByteBudget(10)

    async def scenario():
        with budget.open() as held, budget.open() as leaving, budget.open() as staying, budget.open() as last:
            await held.reserve(8)
            tasks = [
                asyncio.create_task(each.reserve(amount)) for each, amount in ((leaving, 9), (staying, 2), (last, 5))
            ]
            await settle()
            tasks[0].cancel()
            await settle()
            assert tasks[1].done()
            held.set(0)  # grants the last one, which leaves before it runs
            tasks[2].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert budget.held == 2
        assert budget.held == 0

    run(scenario)


def test_an_estimate_can_be_corrected():
    """Up or down, without waiting."""
    budget = ByteBudget(10)

    async def scenario():
        with budget.open() as one:
            await one.reserve(5)
            for amount in (12, 3):
                one.set(amount)
                assert budget.held == amount

    run(scenario)
    assert budget.held == 0


def test_promise_23_what_can_never_fit_is_refused_with_both_numbers():
    """In bytes, and with the name of the setting."""
    with pytest.raises(ImageTooLarge, match="MAX_MEMORY_BYTES") as error:
        ByteBudget(10).check(11)
    assert error.value.facts == {"limit": 10, "actual": 11}
    ByteBudget(10).check(10)
