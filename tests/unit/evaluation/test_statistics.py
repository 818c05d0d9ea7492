import numpy as np
import pytest
from scipy import stats

from mario_dist.evaluation.statistics import iqm, iqm_interval, wilson


@pytest.mark.parametrize("n", [1, 2, 3, 10, 37, 100, 1000])
def test_wilson_equals_scipy(n: int) -> None:
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_the_published_examples(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 29, 100, 999, 12345])
def test_wilson_is_exact_at_none_and_all(n: int) -> None:
    low, high = wilson(0, n)
    assert low == 0.0
    assert 0.0 < high < 1.0
    low, high = wilson(n, n)
    assert high == 1.0
    assert 0.0 < low < 1.0


def test_wilson_of_no_trials_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n", range(1, 30))
def test_wilson_stays_within_0_and_1_around_the_rate(n: int) -> None:
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert 0.0 <= low <= successes / n <= high <= 1.0


def test_wilson_covers_the_true_rate_about_as_often_as_it_says() -> None:
    n, rate = 40, 0.3
    covered = [low <= rate <= high for low, high in (wilson(k, n) for k in range(n + 1))]
    assert np.dot(stats.binom.pmf(range(n + 1), n, rate), covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", range(1, 25))
def test_iqm_equals_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_iqm_leaves_out_the_outer_quarters() -> None:
    assert iqm(np.array([3.0, -1000.0, 4.0, 1000.0])) == 3.5
    assert iqm(np.array([1.0, 2.0, 9.0])) == 4.0  # a quarter of three is none


def test_iqm_leaves_its_input_in_order() -> None:
    values = np.array([3.0, 1.0, 2.0, 0.0])
    iqm(values)
    iqm_interval(values)
    assert values.tolist() == [3.0, 1.0, 2.0, 0.0]


def test_iqm_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).normal(100.0, 20.0, size=60)
    expected = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    low, high = iqm_interval(values)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.6)  # a tenth of its width
    assert low < iqm(values) < high
    assert iqm_interval(values) == (low, high)
    assert iqm_interval(values, seed=1) != (low, high)


def test_iqm_interval_without_spread() -> None:
    assert iqm_interval(np.full(9, 5.0)) == (5.0, 5.0)
    assert iqm_interval(np.array([7.0])) == (7.0, 7.0)
