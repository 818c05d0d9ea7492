"""The tree against cumulated sums of its leaves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario_dist.replay.sum_tree import SumTree


@settings(max_examples=80, deadline=None, derandomize=True)
@given(capacity=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_find_is_a_search_in_the_cumulated_leaves(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(capacity), np.zeros(capacity)
    for _ in range(5):
        index = rng.integers(0, capacity, rng.integers(1, 20))
        # Whole numbers, so that sums are exact in any order; many zeros.
        value = rng.integers(0, 4, len(index)).astype(np.float64)
        tree.set(index, value)
        for i, v in zip(index, value, strict=True):
            leaves[i] = v
        tree.check_valid()
        np.testing.assert_array_equal(tree.leaves, leaves)
        assert tree.total == leaves.sum()
        if tree.total:
            mass = np.append(rng.random(50) * tree.total, [0.0, np.nextafter(tree.total, 0.0)])
            expected = np.searchsorted(np.cumsum(leaves), mass, side="right")
            np.testing.assert_array_equal(tree.find(mass), expected)


def test_rounding_never_finds_an_empty_leaf() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    tree.set(np.arange(0, 1000, 7), rng.random(143) * 10.0 ** rng.integers(-12, 12, 143))
    points = np.concatenate([rng.random(20_000) * tree.total, [tree.total, np.nextafter(tree.total, 0)]])
    assert (tree.leaves[tree.find(points)] > 0.0).all()


def test_samples_are_spread_over_equal_shares() -> None:
    tree = SumTree(8)
    tree.set(np.arange(8), np.array([1.0, 1, 2, 4, 0, 0, 0, 8]))
    counts = np.bincount(tree.sample(1600, np.random.default_rng(1)), minlength=8)
    np.testing.assert_allclose(counts, [100, 100, 200, 400, 0, 0, 0, 800], atol=1)


def test_what_is_no_priority_is_refused() -> None:
    tree = SumTree(4)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            tree.set(np.array([1]), np.array([bad]))
    for index in (-1, 4):
        with pytest.raises(IndexError):
            tree.set(np.array([index]), np.array([1.0]))
    with pytest.raises(ValueError, match="all priorities are 0"):
        tree.sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 1"):
        SumTree(0)


@pytest.mark.parametrize(("node", "value"), [(1, 99.0), (5, -1.0), (7, 3.0), (4, float("nan"))])
def test_check_valid_sees_damage(node: int, value: float) -> None:
    tree = SumTree(3)
    tree.set(np.arange(3), np.ones(3))
    tree.check_valid()
    tree._node[node] = value
    with pytest.raises(AssertionError):
        tree.check_valid()
