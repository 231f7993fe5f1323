"""Which waiting jobs share a batch, and in which order requests, clients and keys are served."""

from __future__ import annotations

import itertools

from tests.scripted import PATIENCE, results


def test_a_lone_request_runs_at_once(make, script):
    """No job waits for others to share its batch."""
    assert results(make().admit("a", [3])) == [30]
    assert script.calls == [("a", [3])]


def test_an_idle_worker_waits_for_a_fuller_batch_only_if_configured(make, script):
    """With a delay, requests that come within it share a batch; a full batch does not wait."""
    batcher = make(max_queue_delay=PATIENCE)
    submissions = [batcher.admit("a", [4]), batcher.admit("a", [6])]
    assert [results(submission) for submission in submissions] == [[40], [60]]
    assert script.calls == [("a", [4, 6])]


def test_what_waits_goes_into_as_few_batches_as_the_budget_allows(make, script, hold):
    """With the first call held, ten more become two full batches."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [2]) for _ in range(10)]
    script.gate.open()
    assert [results(submission) for submission in submissions] == [[20]] * 10
    assert script.calls == [("a", [2] * 5), ("a", [2] * 5)]


def test_no_batch_is_over_the_budget_and_every_job_runs_once(make, script, hold):
    """Costs are added up, and small jobs fill what large ones leave."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", items) for items in ([7, 7, 7], [3], [2, 2], [6], [1, 1, 1])]
    script.gate.open()
    for submission in submissions:
        results(submission)
    ran = [items for _, items in script.calls]
    assert all(sum(items) <= 10 for items in ran)
    assert sorted(item for items in ran for item in items) == [1, 1, 1, 2, 2, 3, 6, 7, 7, 7]
    assert len(ran) == 4


def test_requests_take_turns_job_by_job(make, script, hold):
    """A request of many jobs gives way to the others after each."""
    batcher = make(max_batch_cost=4)
    hold(batcher)
    large = batcher.admit("a", [4, 4, 4])
    small = [batcher.admit("a", [2]) for _ in range(2)]
    script.gate.open()
    for submission in (large, *small):
        results(submission)
    assert script.calls == [("a", [4]), ("a", [2, 2]), ("a", [4]), ("a", [4])]


def test_a_job_that_was_passed_over_heads_the_next_batch(make, script, hold):
    """However many small requests come, a large job is passed over in one batch at most."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [3]), batcher.admit("a", [9])] + [batcher.admit("a", [3]) for _ in range(9)]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert script.calls[0] == ("a", [3, 3, 3])
    assert script.calls[1] == ("a", [9])


def test_clients_take_turns(make, script, hold):
    """One client's many requests do not delay another's one."""
    batcher = make(max_batch_cost=2)
    hold(batcher)
    busy = [batcher.admit("a", [2], client="busy") for _ in range(5)]
    other = batcher.admit("a", [1], client="other")
    script.gate.open()
    for submission in (*busy, other):
        results(submission)
    assert script.calls[1] == ("a", [1])


def test_a_large_job_is_not_passed_over_twice_whichever_client_it_belongs_to(make, script, hold):
    """Its own client's small jobs and another client's do not starve it together."""
    batcher = make()
    hold(batcher)
    submissions = [batcher.admit("a", [3], client="b"), batcher.admit("a", [9], client="a")]
    submissions += [batcher.admit("a", [3], client=client) for _ in range(10) for client in "ab"]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert 9 in script.calls[1][1]


def test_keys_take_turns_and_never_share_a_batch(make, script, hold):
    """A batch has one key, and the keys alternate while both wait."""
    batcher = make(max_batch_cost=4)
    hold(batcher)
    submissions = [batcher.admit(key, [4]) for key in "aaabbb"]
    script.gate.open()
    for submission in submissions:
        results(submission)
    assert [key for key, _ in script.calls] == list("ababab")


def test_results_keep_the_order_of_the_items(make):
    """However jobs are batched, each future has its own item's result."""
    assert results(make(max_batch_cost=9).admit("a", [9, 1, 8, 2])) == [90, 10, 80, 20]


def test_a_new_request_is_served_before_those_that_just_had_a_turn(make, script):
    """Beside a large request a small one that arrives while a batch runs is in the next batch, without a large tile."""
    batcher = make(max_batch_cost=10)
    script.gate.close()
    large = batcher.admit("a", [8, 8, 8, 8])
    script.gate.wait_until_reached()
    small = batcher.admit("a", [1])
    script.gate.open()
    for submission in (large, small):
        results(submission)
    assert [items for _, items in script.calls] == [[8], [1], [8], [8], [8]]


def test_new_requests_cannot_starve_one_that_has_started(make, script):
    """However many arrive, a request that was overtaken is in the next batch."""
    arrivals = []

    def arrive(_items):
        if len(arrivals) < 20:
            arrivals.append(batcher.admit("a", [1]))

    script.fault = arrive
    batcher = make(max_batch_cost=10)
    large = batcher.admit("a", [8] * 6)
    results(large)
    for submission in arrivals:
        results(submission)
    served = [8 in items for _, items in script.calls]
    assert not any(first == second is False for first, second in itertools.pairwise(served[:11]))


def test_a_small_tile_of_a_started_request_fills_a_batch_of_new_ones(make, script):
    """Where it costs no more than they do, so that at most it doubles their time."""
    batcher = make(max_batch_cost=10)
    script.gate.close()
    started = batcher.admit("a", [8, 2, 2])
    script.gate.wait_until_reached()
    new = batcher.admit("a", [3])
    script.gate.open()
    for submission in (started, new):
        results(submission)
    assert script.calls[1] == ("a", [3, 2])
