"""Whether one policy is better than another, by reports of the same protocol."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mario_dist.evaluation.statistics import iqm, wilson
from mario_dist.types import F64

Verdict = Literal["better", "worse", "not distinguishable"]
ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of a policy less that of the base, with its 95 % interval.

    p_value: two-sided, of the permutation test; p_adjusted: the same after Holm's correction for all tests of
    the comparison, by which ``verdict`` judges at 5 %.
    """

    measure: str
    value: float
    base: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float = math.nan

    @property
    def verdict(self) -> Verdict:
        if not self.p_adjusted < ALPHA:
            return "not distinguishable"
        return "better" if self.difference > 0 else "worse"


def compare(base: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[list[Difference]]:
    """For each of the other reports, how its clear rate and its x-position differ from the base's.

    Reports are ``EvalReport`` as mappings. Episodes are compared within their level (stratified tests). The
    x-position's measure is the interquartile mean (Agarwal et al. 2021). Raises ``ValueError`` where they are
    not of one protocol.
    """
    for other in others:
        if other["protocol"] != base["protocol"]:
            raise ValueError("the reports are of different protocols, seeds or levels")
    found = [differ for other in others for differ in _differences(base, other)]
    adjusted = holm([difference.p_value for difference in found])
    found = [
        Difference(d.measure, d.value, d.base, d.difference, d.interval, d.p_value, p)
        for d, p in zip(found, adjusted, strict=True)
    ]
    return [found[i : i + 2] for i in range(0, len(found), 2)]


def _differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    flags, base_flags = _by_level(other, "end"), _by_level(base, "end")
    x, base_x = _by_level(other, "x_pos"), _by_level(base, "x_pos")
    counts = [(int(np.concatenate(part).sum()), sum(map(len, part))) for part in (flags, base_flags)]
    (cleared, n), (base_cleared, base_n) = counts
    return [
        Difference(
            "clear rate",
            cleared / n,
            base_cleared / base_n,
            cleared / n - base_cleared / base_n,
            newcombe(cleared, n, base_cleared, base_n),
            permutation_p(flags, base_flags, _means),
        ),
        Difference(
            "x-position",
            iqm(np.concatenate(x)),
            iqm(np.concatenate(base_x)),
            iqm(np.concatenate(x)) - iqm(np.concatenate(base_x)),
            bootstrap_difference(x, base_x, _iqms),
            permutation_p(x, base_x, _iqms),
        ),
    ]


def _by_level(report: Mapping[str, Any], column: str) -> list[F64]:
    """One array of each level; of ``end``, 1.0 for each flag."""
    columns = [level["played"][column] for level in report["per_level"].values()]
    if column == "end":
        columns = [[end == "flag" for end in ends] for ends in columns]
    return [np.asarray(values, dtype=np.float64) for values in columns]


def newcombe(successes: int, n: int, base_successes: int, base_n: int) -> tuple[float, float]:
    """95 % interval of the difference of two rates, from Wilson's of each (Newcombe 1998, method 10)."""
    p, q = successes / n, base_successes / base_n
    (low, high), (base_low, base_high) = wilson(successes, n), wilson(base_successes, base_n)
    return (
        p - q - math.hypot(p - low, base_high - q),
        p - q + math.hypot(high - p, q - base_low),
    )


type _Statistic = Any  # (float64 [R, n]) -> float64 [R]


def _means(values_RN: F64) -> F64:
    return np.asarray(values_RN.mean(axis=1))


def _iqms(values_RN: F64) -> F64:
    cut = values_RN.shape[1] // 4
    kept = np.sort(values_RN, axis=1)[:, cut : values_RN.shape[1] - cut]
    return np.asarray(kept.mean(axis=1))


def permutation_p(
    strata: Sequence[F64],
    base: Sequence[F64],
    statistic: _Statistic,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> float:
    """Two-sided p-value of the difference of a statistic, with labels exchanged within each stratum.

    The observed labelling counts as one of the permutations (Phipson and Smyth 2010), so p is never 0.
    """
    rng = np.random.default_rng(seed)

    def difference(a_RN: Sequence[F64], b_RN: Sequence[F64]) -> NDArray[np.float64]:
        return np.asarray(statistic(np.concatenate(a_RN, axis=1)) - statistic(np.concatenate(b_RN, axis=1)))

    observed = abs(difference([a[None] for a in strata], [b[None] for b in base])[0])
    mixed = [
        rng.permuted(np.tile(np.concatenate([a, b]), (resamples, 1)), axis=1)
        for a, b in zip(strata, base, strict=True)
    ]
    drawn = difference(
        [m[:, : len(a)] for m, a in zip(mixed, strata, strict=True)],
        [m[:, len(a) :] for m, a in zip(mixed, strata, strict=True)],
    )
    # Rounding must not decide between equal differences.
    extreme = int((np.abs(drawn) >= observed * (1 - 1e-12) - 1e-12).sum())
    return (extreme + 1) / (resamples + 1)


def bootstrap_difference(
    strata: Sequence[F64],
    base: Sequence[F64],
    statistic: _Statistic,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of the difference of a statistic, resampled within each stratum."""
    rng = np.random.default_rng(seed)

    def drawn(parts: Sequence[F64]) -> F64:
        rows = [rng.choice(part, size=(resamples, len(part))) for part in parts]
        return np.asarray(statistic(np.concatenate(rows, axis=1)))

    low, high = np.percentile(drawn(strata) - drawn(base), (2.5, 97.5))
    return (float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for testing all of them (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = highest
    return adjusted
