"""Where episodes fail."""

import itertools

import numpy as np

from mario_dist.report.failures import BIN_PIXELS, CAUSES, LANDMARKS, count_failures


def test_failures_are_counted_by_place_and_cause_and_flags_are_none() -> None:
    x_pos = [0, 31, 32, 100, 100, 3161]
    ends = ["death", "death", "stall", "death", "time", "flag"]
    counts = count_failures(x_pos, ends, bin_pixels=32)
    assert {cause: np.flatnonzero(bins).tolist() for cause, bins in counts.items()} == {
        "death": [0, 3],
        "stall": [1],
        "time": [3],
    }
    assert counts["death"][0] == 2
    assert {len(bins) for bins in counts.values()} == {3161 // 32 + 1}


def test_random_episodes_match_a_loop() -> None:
    rng = np.random.default_rng(0)
    x_pos, ends = rng.integers(0, 3200, 500), rng.choice([*CAUSES, "flag"], 500)
    for cause, bins in count_failures(x_pos, ends.tolist()).items():
        for i, count in enumerate(bins):
            inside = [x // BIN_PIXELS == i and end == cause for x, end in zip(x_pos, ends, strict=True)]
            assert count == sum(inside)


def test_no_episodes_no_failures() -> None:
    assert count_failures([], []) == {}
    assert count_failures([3161], ["flag"]) == {}


def test_landmarks_of_1_1_are_in_order_and_end_at_the_flag() -> None:
    marks = LANDMARKS["1-1"]
    assert [mark.x_from for mark in marks] == sorted(mark.x_from for mark in marks)
    assert all(a.x_to <= b.x_from for a, b in itertools.pairwise(marks))
    assert (marks[-1].name, marks[-1].x_from) == ("flag", 3161)
