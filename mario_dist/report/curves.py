"""From rows to the points of a curve: moving averages with their uncertainty, wall-clock time, thinning."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mario_dist.evaluation.statistics import Z95, wilson
from mario_dist.types import F64, I64, Bool

WINDOW = 100
"""Episodes in a moving average, as in the live view."""
MIN_EPISODES = 10
"""An average of fewer is left out: its interval would be wider than the chart."""


@dataclass(frozen=True, slots=True)
class Band:
    """A curve and its 95 % interval, float64 [n] each; NaN where there is too little to say."""

    middle: F64
    low: F64
    high: F64

    def at(self, index: I64) -> "Band":
        return Band(self.middle[index], self.low[index], self.high[index])


def moving_mean(values: F64, window: int = WINDOW, least: int = MIN_EPISODES) -> Band:
    """The mean of the last ``window`` values at each of them, of fewer at the start but at least ``least``.

    The interval is that of the mean: its standard error (sample deviation) times the normal's 1.96.
    """
    count = np.minimum(np.arange(1, len(values) + 1), window)
    # Centred, so that the difference of sums of squares keeps its digits.
    centre = values.mean() if len(values) else 0.0
    mean = _moving_sum(values - centre, window) / count
    squares = _moving_sum((values - centre) ** 2, window)
    # One value says nothing of its own spread.
    freedom = np.where(count > 1, count - 1, math.nan)
    variance = np.maximum(squares - count * mean**2, 0.0) / freedom
    half = Z95 * np.sqrt(variance / count)
    mean = np.where(count < least, math.nan, mean + centre)
    return Band(mean, mean - half, mean + half)


def moving_rate(flags: Bool, window: int = WINDOW, least: int = MIN_EPISODES) -> Band:
    """The share of true ones in the last ``window``, with Wilson's interval; the start as ``moving_mean``."""
    count = np.minimum(np.arange(1, len(flags) + 1), window)
    hits = np.rint(_moving_sum(flags.astype(np.float64), window)).astype(np.int64)
    # There are few different (hits, count): Wilson's formula is asked once for each.
    pairs, inverse = np.unique(np.stack([hits, count], axis=1), axis=0, return_inverse=True)
    bounds = np.array([wilson(int(h), int(n)) for h, n in pairs]).reshape(-1, 2)[inverse.reshape(-1)]
    early = count < least
    middle, low, high = (
        np.where(early, math.nan, values) for values in (hits / count, bounds[:, 0], bounds[:, 1])
    )
    return Band(middle, low, high)


def _moving_sum(values: F64, window: int) -> F64:
    """float64 [n]: at i the sum of ``values[max(0, i + 1 - window) : i + 1]``."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    difference: F64 = total[end] - total[np.maximum(end - window, 0)]
    return difference


def wall_clock(agent_steps: ArrayLike, known_steps: ArrayLike, known_wall_s: ArrayLike) -> F64:
    """Seconds since the run began at which these agent steps were done, between the times that are known.

    A run begins at 0 steps and 0 s; steps after the last known time get that time. NaN without any.
    """
    steps = np.asarray(agent_steps, dtype=np.float64)
    at, first = np.unique(np.asarray(known_steps, dtype=np.float64), return_index=True)
    if not len(at):
        return np.full(steps.shape, math.nan)
    wall_s = np.asarray(known_wall_s, dtype=np.float64)[first]
    if at[0] > 0:
        at, wall_s = np.concatenate([[0.0], at]), np.concatenate([[0.0], wall_s])
    return np.interp(steps, at, wall_s)


def spaced(count: int, limit: int) -> I64:
    """Indices of at most ``limit`` of ``count`` rows, evenly spaced, the first and the last among them."""
    if count <= limit:
        return np.arange(count)
    return np.rint(np.linspace(0, count - 1, limit)).astype(np.int64)


def extremes(values: F64, limit: int) -> I64:
    """Indices of at most ``limit`` values, in order: the least and the greatest of each of ``limit // 2``
    equal stretches, so that thinning hides no spike."""
    if len(values) <= limit:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), limit // 2 + 1).astype(np.int64)
    missing = np.isnan(values)
    low, high = np.where(missing, math.inf, values), np.where(missing, -math.inf, values)
    kept = {
        int(a + pick)
        for a, b in itertools.pairwise(edges)
        for pick in (low[a:b].argmin(), high[a:b].argmax())
    }
    return np.array(sorted(kept), dtype=np.int64)
