"""Honest numbers from few episodes."""

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a rate (Wilson 1927); honest at 0 and 1 too. (0, 1) for no trials."""
    if n == 0:
        return (0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n of n the bound is exact; rounding would miss it by a hair.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return (low, high)


def iqm(values: NDArray[np.float64]) -> float:
    """Interquartile mean: the mean of the middle half, by rank (Agarwal et al. 2021)."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def iqm_interval(values: NDArray[np.float64], seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of ``iqm``."""
    rng = np.random.default_rng(seed)
    draws = np.sort(rng.choice(values, size=(resamples, len(values))), axis=1)
    cut = len(values) // 4
    means = draws[:, cut : len(values) - cut].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return (float(low), float(high))
