import random
from collections import deque

import pytest

from mario_dist.replay import BoundedQueue


def test_first_in_first_out_each_once() -> None:
    queue = BoundedQueue[str](3)
    for item in "abc":
        queue.put(item)
    assert (len(queue), queue.free) == (3, 0)
    assert queue.take(2) == ["a", "b"]
    queue.put("d")
    assert queue.take(2) == ["c", "d"]
    assert (len(queue), queue.free) == (0, 3)


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    queue = BoundedQueue[int](2)
    queue.put(1)
    queue.put(2)
    with pytest.raises(OverflowError, match="full"):
        queue.put(3)
    assert queue.take(2) == [1, 2]


def test_taking_more_than_there_is_takes_nothing() -> None:
    queue = BoundedQueue[int](4)
    queue.put(1)
    with pytest.raises(IndexError, match="2 items asked for, 1 there"):
        queue.take(2)
    assert queue.take(0) == []
    assert queue.take(1) == [1]


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        BoundedQueue[int](capacity)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_puts_and_takes_is_that_of_a_plain_queue(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randint(1, 6)
    queue, model = BoundedQueue[int](capacity), deque[int]()
    for item in range(300):
        if rng.random() < 0.6:
            if len(model) < capacity:
                queue.put(item)
                model.append(item)
            else:
                with pytest.raises(OverflowError):
                    queue.put(item)
        else:
            count = rng.randint(0, 3)
            if count <= len(model):
                assert queue.take(count) == [model.popleft() for _ in range(count)]
            else:
                with pytest.raises(IndexError):
                    queue.take(count)
        assert (len(queue), queue.free) == (len(model), capacity - len(model))
