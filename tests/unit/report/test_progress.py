"""The figures of the live view."""

import math

import pytest

from mario_dist.report.progress import History, Progress, duration, number, sparkline


def progress(
    agent_steps: int, start_steps: int = 0, wall_s: float = 10.0, total_steps: int = 1000
) -> Progress:
    return Progress(
        agent_steps, total_steps, start_steps, wall_s, 1.0, 4.0, 0, None, None, None, None, 0, 0, 0
    )


def test_eta_is_from_this_process_only() -> None:
    # 100 steps in 10 s by this process; the 400 before it were made by another, faster or slower.
    assert progress(500, start_steps=400).eta_s == pytest.approx(50.0)


def test_eta_is_unknown_before_the_first_step_and_zero_at_the_end() -> None:
    assert progress(400, start_steps=400).eta_s is None
    assert progress(400, wall_s=0.0).eta_s is None
    assert progress(1000, start_steps=1000).eta_s == 0.0
    assert progress(1064).eta_s == 0.0
    assert progress(1064).done == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (3661, "1:01:01"),
        (90061, "1d 1:01:01"),
        (None, "?"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.01234, "-0.0123"),
        (2.5e-4, "0.00025"),
        (1.5e-5, "1.5e-05"),
        (12345.6, "12346"),
        (math.nan, "nan"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_sparkline() -> None:
    assert sparkline([], 8, "_-^") == ""
    assert sparkline([3.0, 3.0], 8, "_-^") == "__"
    assert sparkline([0.0, 1.0, 2.0], 8, "_-^") == "_-^"
    assert sparkline([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], 3, "_-^") == "_-^"
    assert len(sparkline([float(i) for i in range(257)], 19, "_-^")) == 19


def test_history_covers_the_whole_run_with_evenly_spaced_points() -> None:
    history = History(size=8)
    for value in range(1000):
        history.add(float(value))
        assert len(history.values) <= 8
    gaps = {b - a for a, b in zip(history.values, history.values[1:], strict=False)}
    assert history.values[0] == 0.0
    assert len(gaps) == 1
    assert history.values[-1] >= 1000 - gaps.pop()
