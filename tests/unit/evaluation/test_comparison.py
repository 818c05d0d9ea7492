"""The statistics of comparisons, against SciPy, published examples and brute force."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mario_dist.evaluation import compare
from mario_dist.evaluation.comparison import (
    _iqms,
    _means,
    bootstrap_difference,
    holm,
    newcombe,
    permutation_p,
)
from mario_dist.types import F64


@pytest.mark.parametrize(
    ("rates", "low", "high"),
    [
        # Newcombe (1998), table II, method 10.
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
        ((0, 10, 0, 20), -0.1611, 0.2775),
    ],
)
def test_the_interval_of_a_difference_of_rates_is_the_published_one(
    rates: tuple[int, int, int, int], low: float, high: float
) -> None:
    assert newcombe(*rates) == pytest.approx((low, high), abs=5e-5)


def test_the_permutation_test_is_the_exact_one_where_that_can_be_counted() -> None:
    a, b = np.array([3.0, 5.0, 9.0, 10.0]), np.array([1.0, 2.0, 4.0, 8.0])
    both, observed = np.concatenate([a, b]), abs(a.mean() - b.mean())
    splits = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    exact = np.mean([abs(both[s].mean() - both[~s].mean()) >= observed - 1e-12 for s in splits])
    assert permutation_p([a], [b], _means) == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.6])
def test_the_permutation_test_agrees_with_scipy(shift: float) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(shift, 1, 60), rng.normal(0, 1, 50)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), n_resamples=20_000, rng=rng
    )
    assert permutation_p([a], [b], _means) == pytest.approx(theirs.pvalue, abs=0.012)


def test_of_rates_the_permutation_test_is_fishers() -> None:
    a, b = np.repeat([1.0, 0.0], (14, 36)), np.repeat([1.0, 0.0], (5, 45))
    assert permutation_p([a], [b], _means) == pytest.approx(
        stats.fisher_exact([[14, 36], [5, 45]]).pvalue, abs=0.012
    )


def test_the_bootstrap_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.gamma(2.0, 400, 100), rng.gamma(2.0, 300, 100)
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: stats.trim_mean(x, 0.25, axis=axis) - stats.trim_mean(y, 0.25, axis=axis),
        method="percentile",
        n_resamples=10_000,
        rng=rng,
    ).confidence_interval
    ours = bootstrap_difference([a], [b], _iqms)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=12)


def test_strata_are_not_mixed() -> None:
    """Two levels of very different length: the difference within each is what counts."""
    rng = np.random.default_rng(0)
    short, long = rng.normal(100, 5, 50), rng.normal(3000, 5, 50)
    better: list[F64] = [short + 5, long + 5]
    assert permutation_p(better, [short, long], _means) < 0.001
    assert permutation_p([np.concatenate(better)], [np.concatenate([short, long])], _means) > 0.5
    low, high = bootstrap_difference(better, [short, long], _means)
    assert 0 < low < 5 < high < 10


def test_holm_as_published() -> None:
    # The example of R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm").
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([]) == []


def test_equal_policies_are_told_apart_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(11)
    p_values = [
        permutation_p([rng.gamma(2.0, 400, 40)], [rng.gamma(2.0, 400, 40)], _iqms, resamples=500)
        for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.10


def report(seed: int, clear_rate: float, x: float, protocol: object = "same", n: int = 100) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    flags = rng.permutation(np.arange(n) < round(clear_rate * n))
    ends = ["flag" if flag else "death" for flag in flags]
    x_pos = [3161 if flag else int(v) for flag, v in zip(flags, rng.normal(x, 100, n), strict=True)]
    return {"protocol": protocol, "per_level": {"1-1": {"played": {"x_pos": x_pos, "end": ends}}}}


def test_verdicts_in_words() -> None:
    base = report(0, 0.2, 1000)
    (better, worse, same) = compare(base, [report(1, 0.6, 1500), report(2, 0.02, 500), report(3, 0.2, 1000)])
    assert [d.verdict for d in better] == ["better", "better"]
    assert [d.verdict for d in worse] == ["worse", "worse"]
    assert [d.verdict for d in same] == ["not distinguishable", "not distinguishable"]
    rate = better[0]
    assert (rate.measure, rate.value, rate.base) == ("clear rate", 0.6, 0.2)
    assert rate.difference == pytest.approx(0.4)
    assert rate.interval[0] < 0.4 < rate.interval[1]
    assert rate.p_adjusted > rate.p_value
    assert better[1].measure == "x-position"
    assert better[1].interval[0] < better[1].difference < better[1].interval[1]


def test_a_report_is_not_distinguishable_from_itself() -> None:
    base = report(0, 0.0, 700)
    ((rate, x),) = compare(base, [base])
    assert (rate.difference, x.difference) == (0.0, 0.0)
    assert (rate.p_value, x.p_value) == (1.0, 1.0)
    assert rate.interval[0] < 0 < rate.interval[1]


def test_reports_of_other_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="different protocols"):
        compare(report(0, 0.2, 1000), [report(1, 0.2, 1000, protocol="other")])
