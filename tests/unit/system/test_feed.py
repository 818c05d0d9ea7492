"""Who may go on: the queue's rules on handles that are numbers."""

from mario_dist.system.feed import QueueFeed
from mario_dist.system.ports import Collected
from mario_dist.types import StepReport


def unroll(name: int, version: int = 0, actor: int = 0) -> Collected[int]:
    return Collected(name, actor, steps=10, weights_version=version, episodes=())


def test_in_step_the_learner_gets_one_unroll_of_each_and_the_lag_is_what_was_asked() -> None:
    for lag in (0, 1):
        feed: QueueFeed[int] = QueueFeed(actors=2, max_lag=lag, in_step=True)
        assert feed.least > 1_000, "whoever is under way is waited for"
        assert feed.may_collect(in_flight=0)
        feed.put([unroll(1)])
        assert feed.order(version=0, under_way=1) is None
        assert not feed.may_collect(in_flight=0), "who is done waits for the other"
        feed.put([unroll(2)])
        assert feed.order(version=0) == (1, 2)
        assert feed.may_collect(in_flight=1) is (lag == 1)
        feed.put([unroll(3), unroll(4)])
        assert not feed.may_collect(in_flight=1)
        assert feed.metrics() == {}
        assert feed.order(version=1) == (3, 4)


def test_actors_come_and_go() -> None:
    in_step: QueueFeed[int] = QueueFeed(actors=1, max_lag=0, in_step=True)
    half: QueueFeed[int] = QueueFeed(actors=2, max_lag=8)
    fixed: QueueFeed[int] = QueueFeed(actors=2, batch=2, max_lag=8)
    for feed in (in_step, half, fixed):
        feed.resize(6)
        feed.put([unroll(i, actor=i) for i in range(6)])
    assert in_step.order(version=0) == (0, 1, 2, 3, 4, 5)
    assert half.order(version=0) == (0, 1, 2)
    assert fixed.order(version=0) == (0, 1)
    half.put([unroll(6), unroll(7)])
    half.resize(2)  # a node went, and what it made before waits
    assert half.depth == 5
    half.put([unroll(8)])
    assert [half.order(version=0) for _ in range(6)] == [(3,), (4,), (5,), (6,), (7,), (8,)]


def test_otherwise_it_takes_whichever_came_and_holds_the_actors_while_a_batch_waits() -> None:
    feed: QueueFeed[int] = QueueFeed(actors=3, batch=2, max_lag=8)
    assert feed.least == 1
    feed.put([unroll(1, actor=2)])
    assert feed.order(0) is None
    assert feed.may_collect(in_flight=2)
    feed.put([unroll(2, actor=2), unroll(3, actor=0), unroll(4, actor=1)])  # all that can be under way
    assert feed.depth == 4
    assert not feed.may_collect(in_flight=0)
    assert feed.order(0) == (1, 2)
    assert feed.order(0) == (3, 4)
    assert feed.order(0) is None
    assert feed.metrics() == {"late_unrolls": 0.0, "crowded_out_unrolls": 0.0, "dropped_steps": 0.0}


def test_too_old_unrolls_are_left_out_and_counted() -> None:
    feed: QueueFeed[int] = QueueFeed(actors=3, batch=2, max_lag=3)
    feed.put([unroll(1, version=4), unroll(2, version=3), unroll(3, version=9)])
    assert feed.order(version=7) == (1, 3)
    assert feed.metrics() == {"late_unrolls": 1.0, "crowded_out_unrolls": 0.0, "dropped_steps": 10.0}
    feed.put([unroll(4, version=7)])
    assert feed.order(version=11, draining=True) is None
    assert feed.metrics()["late_unrolls"] == 2.0
    assert feed.learned(StepReport(8, 20, {"loss": 1.0})).metrics == {"loss": 1.0, **feed.metrics()}


def test_nothing_is_begun_that_could_only_be_too_old() -> None:
    feed: QueueFeed[int] = QueueFeed(actors=1, batch=1, max_lag=1)
    assert feed.may_collect(in_flight=0)
    assert feed.may_collect(in_flight=1)
    assert not feed.may_collect(in_flight=2)


def test_with_drop_nobody_is_held_and_the_oldest_make_room() -> None:
    feed: QueueFeed[int] = QueueFeed(actors=2, batch=2, max_lag=100, drop=True)
    for name in range(10):
        assert feed.may_collect(in_flight=2)
        feed.put([unroll(name)])
    assert feed.depth == 4
    assert feed.metrics() == {"late_unrolls": 0.0, "crowded_out_unrolls": 6.0, "dropped_steps": 60.0}
    assert feed.order(0) == (6, 7)


def test_before_a_pause_the_rest_is_a_smaller_batch() -> None:
    feed: QueueFeed[int] = QueueFeed(actors=3, batch=2, max_lag=8)
    feed.put([unroll(1), unroll(2), unroll(3)])
    assert feed.order(0, draining=True) == (1, 2)
    assert feed.order(0) is None
    assert feed.order(0, draining=True) == (3,)
    assert feed.order(0, draining=True) is None
