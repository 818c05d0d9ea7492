"""A sum tree over non-negative priorities, every operation on whole batches (Schaul et al. 2016, B.2.1)."""

import numpy as np
from numpy.typing import NDArray

from mario_dist.types import F64, I64


class SumTree:
    """``capacity`` leaves, all 0 at first.

    Node 1 is the root, node i has children 2i and 2i + 1, and the leaves are the last level. A parent is
    always summed anew from its children, never changed by a difference, so nothing drifts.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._capacity = capacity
        self._depth = (capacity - 1).bit_length()
        self._first_leaf = 1 << self._depth
        self._node: F64 = np.zeros(2 * self._first_leaf, dtype=np.float64)

    @property
    def total(self) -> float:
        return float(self._node[1])

    @property
    def leaves(self) -> F64:
        """float64 [capacity], a view: change it through ``set`` only."""
        return self._node[self._first_leaf : self._first_leaf + self._capacity]

    def set(self, index_B: I64, value_B: F64) -> None:
        """Give these leaves these values; of an index that comes twice, the last one counts.

        Raises ``ValueError`` for values that are negative or not finite, ``IndexError`` for no such leaf.
        """
        if not len(index_B):
            return
        if not (np.isfinite(value_B).all() and value_B.min() >= 0.0):
            raise ValueError("priorities must be finite and not negative")
        if index_B.min() < 0 or index_B.max() >= self._capacity:
            raise IndexError(f"leaves are 0 to {self._capacity - 1}")
        node_B = index_B + self._first_leaf
        self._node[node_B] = value_B
        for _ in range(self._depth):
            node_B = node_B >> 1
            self._node[node_B] = self._node[2 * node_B] + self._node[2 * node_B + 1]

    def find(self, mass_B: NDArray[np.float64]) -> I64:
        """The leaf at each point of the cumulated priorities, points in [0, total): int64 [B].

        A leaf of 0 is never found. Raises ``ValueError`` where all leaves are 0.
        """
        if self.total <= 0.0:
            raise ValueError("all priorities are 0")
        mass_B = mass_B.copy()
        node_B = np.ones(len(mass_B), dtype=np.int64)
        for _ in range(self._depth):
            left_B = 2 * node_B
            left_sum_B = self._node[left_B]
            # Rounding may leave a point just beyond its subtree: it must not fall into an empty one.
            right_B = (mass_B >= left_sum_B) & (self._node[left_B + 1] > 0.0)
            mass_B -= np.where(right_B, left_sum_B, 0.0)
            node_B = left_B + right_B
        return node_B - self._first_leaf

    def sample(self, count: int, rng: np.random.Generator) -> I64:
        """``count`` leaves in proportion to their values, one from each of ``count`` equal shares."""
        return self.find((np.arange(count) + rng.random(count)) * (self.total / count))

    def check_valid(self) -> None:
        """Raise ``AssertionError`` unless every node is the sum of its children and no leaf is negative."""
        parents = np.arange(1, self._first_leaf)
        sums = self._node[2 * parents] + self._node[2 * parents + 1]
        assert np.array_equal(self._node[parents], sums), "a node is not the sum of its children"
        leaves = self._node[self._first_leaf :]
        assert np.isfinite(leaves).all(), "a leaf is not finite"
        assert (leaves >= 0.0).all(), "a leaf is negative"
        assert not leaves[self._capacity :].any(), "a leaf beyond the capacity is not 0"
