"""Learning from a batch more than once."""

import random
from dataclasses import dataclass


@dataclass
class _Entry[T]:
    item: T
    left: int


class ReuseBuffer[T]:
    """The newest ``size`` batches, each drawn at most ``reuse`` times (the circular buffer of RLlib's APPO).

    With ``size`` 1 every batch is drawn ``reuse`` times at once; with more, a batch comes between others that
    are older. One that is pushed out earlier was drawn fewer times.
    """

    def __init__(self, size: int, reuse: int, seed: int) -> None:
        if min(size, reuse) < 1:
            raise ValueError("size and reuse must be at least 1")
        self._size = size
        self._reuse = reuse
        self._random = random.Random(seed)
        self._entries: list[_Entry[T]] = []

    def add_and_draw(self, item: T) -> list[T]:
        """Take in the newest batch, and give ``reuse`` to learn from now, or as many as are left."""
        self._entries = [*self._entries, _Entry(item, self._reuse)][-self._size :]
        drawn: list[T] = []
        while self._entries and len(drawn) < self._reuse:
            entry = self._random.choice(self._entries)
            drawn.append(entry.item)
            entry.left -= 1
            self._entries = [e for e in self._entries if e.left]
        return drawn
