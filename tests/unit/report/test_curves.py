"""The points of a curve, against the plain definition of each."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mario_dist.evaluation.statistics import wilson
from mario_dist.report.curves import extremes, moving_mean, moving_rate, spaced, wall_clock


@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_moving_mean_is_the_mean_of_each_window_and_its_standard_error(window: int) -> None:
    values = np.random.default_rng(0).normal(3000.0, 1.0, 250)
    band = moving_mean(values, window, least=1)
    for i in range(len(values)):
        seen = values[max(0, i + 1 - window) : i + 1]
        assert band.middle[i] == pytest.approx(seen.mean(), abs=1e-9)
        if len(seen) > 1:
            half = 1.959964 * seen.std(ddof=1) / math.sqrt(len(seen))
            assert band.high[i] - band.middle[i] == pytest.approx(half, rel=1e-5)
            assert band.middle[i] - band.low[i] == pytest.approx(half, rel=1e-5)
        else:
            assert math.isnan(band.low[i])


def test_equal_values_have_no_interval_and_a_large_one_does_not_spoil_it() -> None:
    band = moving_mean(np.full(300, 3161.0), 100)
    assert np.allclose(band.high[10:], 3161.0, atol=1e-6)
    assert np.allclose(band.low[10:], 3161.0, atol=1e-6)


@pytest.mark.parametrize("window", [3, 100])
def test_moving_rate_has_wilsons_interval_of_each_window(window: int) -> None:
    flags = np.random.default_rng(1).random(180) < 0.3
    band = moving_rate(flags, window, least=1)
    for i in range(len(flags)):
        seen = flags[max(0, i + 1 - window) : i + 1]
        low, high = wilson(int(seen.sum()), len(seen))
        assert band.middle[i] == pytest.approx(seen.mean())
        assert (band.low[i], band.high[i]) == (pytest.approx(low), pytest.approx(high))


def test_too_few_episodes_are_no_average() -> None:
    values = np.arange(12.0)
    for band in (moving_mean(values, least=10), moving_rate(values > 5, least=10)):
        assert np.isnan(band.middle[:9]).all()
        assert not np.isnan(band.middle[9:]).any()
        assert np.array_equal(band.at(np.array([9, 11])).middle, band.middle[[9, 11]])
    assert len(moving_mean(np.array([])).middle) == len(moving_rate(np.array([], dtype=bool)).low) == 0


def test_wall_clock_is_interpolated_from_the_runs_beginning() -> None:
    # Two metrics of one report know the same time.
    found = wall_clock([0, 50, 100, 150, 400], [100, 100, 200], [10.0, 10.0, 30.0])
    assert found.tolist() == [0.0, 5.0, 10.0, 20.0, 30.0]
    assert np.isnan(wall_clock([1, 2], [], [])).all()
    assert wall_clock([], [1], [1.0]).shape == (0,)


@given(st.integers(0, 500), st.integers(2, 50))
def test_spaced_keeps_the_ends_and_an_even_spacing(count: int, limit: int) -> None:
    index = spaced(count, limit)
    assert len(index) == min(count, limit)
    if count > limit:
        gaps = np.diff(index)
        assert (index[0], index[-1]) == (0, count - 1)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    else:
        assert index.tolist() == list(range(count))


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=300), st.integers(2, 40))
def test_extremes_keep_the_least_and_the_greatest_within_the_limit(values: list[float], limit: int) -> None:
    array = np.array(values, dtype=np.float64)
    index = extremes(array, limit)
    assert len(index) <= max(limit, 0)
    assert (np.diff(index) > 0).all()
    finite = array[~np.isnan(array)]
    if len(finite):
        kept = array[index]
        assert (np.nanmin(kept), np.nanmax(kept)) == (finite.min(), finite.max())
