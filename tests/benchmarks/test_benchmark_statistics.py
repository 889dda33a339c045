# SPDX-License-Identifier: Apache-2.0
"""Sample plans, summaries, turn order and the classification of changes; nothing is timed."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.common import MIN_SAMPLES, MIN_SAMPLES_SLOW, Sample, make_plan, summarize
from benchmarks.compare import classify, compare
from benchmarks.measure import interleave


def test_summary_of_known_numbers():
    summary = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.minimum, summary.q1, summary.median, summary.q3) == (1.0, 2.0, 3.0, 4.0)
    assert summary.iqr == 2.0
    assert summary.samples == 5


def test_summary_of_one_sample_and_of_none():
    summary = summarize([0.25])
    assert summary.q1 == summary.median == summary.q3 == summary.minimum == 0.25
    with pytest.raises(ValueError, match="at least one sample"):
        summarize([])


@pytest.mark.parametrize("seconds", [1e-7, 1e-4, 5e-3, 0.1, 0.3])
def test_calls_up_to_the_slow_limit_get_thirty_samples(seconds):
    assert make_plan(seconds).samples == MIN_SAMPLES


def test_slow_calls_get_fewer_samples_but_never_under_five_and_one_beyond_twenty_seconds():
    counts = [make_plan(seconds).samples for seconds in (0.31, 0.6, 1.0, 5.0, 19.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] < MIN_SAMPLES
    assert counts[-1] == MIN_SAMPLES_SLOW
    assert make_plan(21.0).samples == 1


def test_short_calls_are_repeated_and_warm():
    plan = make_plan(1e-5)
    assert plan.loops * 1e-5 >= 1e-3
    assert plan.warm
    assert make_plan(0.5).loops == 1
    assert not make_plan(0.5).warm


def test_one_thread_rows_charge_helper_threads():
    cheating = Sample(wall=1.0, thread=0.5, process=2.0)
    assert cheating.seconds(1) == 2.0
    assert cheating.seconds(2) == 1.0


def test_candidates_take_turns_and_keep_their_counts():
    counts = [30, 30, 5, 1]
    order = interleave(counts)
    assert Counter(order) == dict(enumerate(counts))
    for half in (order[: len(order) // 2], order[len(order) // 2 :]):
        assert abs(half.count(0) - 15) <= 1
        assert 2 <= half.count(2) <= 3
    longest = max(len(run) for run in "".join(map(str, order)).replace("0", " 0 ").split())
    assert longest <= 4


def test_first_place_rotates():
    order = interleave([4, 4])
    assert order == [0, 1, 1, 0, 0, 1, 1, 0]


def _times(median, spread=0.0):
    return {"median": median, "q1": median - spread, "q3": median + spread}


@pytest.mark.parametrize(
    ("new", "old", "change"),
    [
        (_times(0.8, 0.01), _times(1.0, 0.01), "faster"),
        (_times(1.2, 0.01), _times(1.0, 0.01), "slower"),
        (_times(1.01, 0.02), _times(1.0, 0.02), "same"),
        (_times(1.01, 0.2), _times(1.0, 0.2), "undecided"),
        (_times(1.2, 0.15), _times(1.0, 0.15), "undecided"),
        (_times(1.04, 0.001), _times(1.0, 0.001), "same"),
    ],
)
def test_changes_are_classified_from_medians_and_quartiles(new, old, change):
    assert classify(new, old) == change


def test_compare_names_new_and_vanished_candidates():
    def result(name):
        row = {"id": "a", "threads": 1, "candidates": [{"name": name, "seconds": _times(1.0)}]}
        return {"rows": [row]}

    changes = {key[2]: change for key, change, *_ in compare(result("x"), result("y"))}
    assert changes == {"x": "new", "y": "gone"}
