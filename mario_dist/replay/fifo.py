"""A bounded first-in first-out queue: what on-policy learners consume, each item once."""

from collections import deque
from collections.abc import Callable


class BoundedQueue[T]:
    """At most ``capacity`` items. Nothing is dropped: who would overfill it must wait, so ``put`` refuses."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._items: deque[T] = deque()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._items)

    @property
    def free(self) -> int:
        return self._capacity - len(self._items)

    def grow(self, capacity: int) -> None:
        """Room for at least ``capacity`` items from now on."""
        self._capacity = max(self._capacity, capacity)

    def put(self, item: T) -> None:
        """Add an item. Raises ``OverflowError`` when full: check ``free`` first."""
        if not self.free:
            raise OverflowError(f"the queue is full ({self._capacity} items)")
        self._items.append(item)

    def take(self, count: int) -> list[T]:
        """Remove the ``count`` oldest items. Raises ``IndexError`` where there are fewer."""
        if count > len(self._items):
            raise IndexError(f"{count} items asked for, {len(self._items)} there")
        return [self._items.popleft() for _ in range(count)]

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove the items that are ``unwanted``; the others keep their order."""
        out = [item for item in self._items if unwanted(item)]
        if out:
            self._items = deque(item for item in self._items if not unwanted(item))
        return out
