"""The same topology on Ray: real actors, really killed."""

import fcntl
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import psutil
import pytest
import ray

from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.system.feed import make_queue_feed
from mario_dist.system.plan import make_plan
from mario_dist.system.ray import ray_learner
from mario_dist.system.ray_cluster import connected
from mario_dist.system.ray_rollouts import RayRollouts
from mario_dist.system.topology import Counters, Iteration, Judge, Recovery, train
from mario_dist.types import Arrays, EvalReport

Make = Callable[..., RunConfig]
RAY = {"system": {"driver": "ray"}, "rollout": {"actors": 2, "lanes": 3}, "total_steps": 480}


class Log:
    """An observer that remembers; ``after`` is called with every iteration."""

    def __init__(self, after: Callable[[Iteration], None]) -> None:
        self.iterations: list[Iteration] = []
        self.states: list[tuple[Arrays, list[Arrays]]] = []
        self._after = after

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)
        self._after(iteration)

    def evaluated(self, counters: Counters, report: EvalReport, by: Judge) -> None:
        assert report.episodes > 0

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        done: bool = False,
        save_replay: object = None,
    ) -> None:
        self.states.append((learner, workers))

    def episode_keys(self) -> Counter[tuple[int, int, int]]:
        return Counter((e.actor, e.incarnation, e.sequence) for i in self.iterations for e in i.episodes)


@pytest.fixture(scope="module")
def ray_here(ray_lock: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    with ray_lock(fcntl.LOCK_SH), connected(None, None, cores=4):
        yield


def drive(
    config: RunConfig,
    after: Callable[[RayRollouts, Iteration], None] = lambda rollouts, iteration: None,
    recovery: Callable[[Log], Recovery | None] = lambda log: None,
    *,
    elastic: bool = False,
    learner_dies_at: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Log:
    plan = replace(make_plan(config, 2, gpu=False), elastic=elastic)
    rollouts = RayRollouts(config, plan, [], 0)
    learner = ray_learner(config, plan, None, gpu=False)

    def iterated(iteration: Iteration) -> None:
        after(rollouts, iteration)
        if iteration.counters.iterations == learner_dies_at:
            kill(learner._actor)

    log = Log(iterated)
    try:
        feed = make_queue_feed(config, plan)
        outcome = train(
            rollouts, learner, feed, config, Counters(), log, should_stop, recovery=lambda: recovery(log)
        )
        assert outcome == ("stopped" if should_stop() else "finished")
    finally:
        rollouts.close()
        learner.close()
    return log


def kill(actor: Any) -> None:
    """SIGKILL an actor's process, as the kernel's OOM killer would."""
    os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)


def kill_a_rollout_actor(rollouts: RayRollouts) -> None:
    kill(rollouts._actors[0].handle)


@pytest.mark.usefixtures("ray_here")
def test_lag_0_waits_for_the_newest_weights_and_lag_1_overlaps(probe_config: Make) -> None:
    for lag in (0, 1):
        config = probe_config(
            **RAY | {"system": {"driver": "ray", "max_policy_lag": lag}}, checkpoint={"every_steps": 480}
        )
        log = drive(config)
        lags = [int(i.report.metrics["policy_lag"]) for i in log.iterations]
        assert lags == [0] * 5 if lag == 0 else lags == [0, 1, 1, 1, 1]
        # With an overlap the next unrolls may be there before the report on the last ones.
        steps = [i.counters.agent_steps for i in log.iterations]
        learned = [96, 192, 288, 384, 480]
        assert all(s in (n, min(480, n + 96 * lag)) for s, n in zip(steps, learned, strict=True))
        assert set(log.episode_keys().values()) == {1}
        assert len(log.states[-1][1]) == 2


@pytest.mark.usefixtures("ray_here")
def test_nothing_of_it_listens_beyond_this_machine(probe_config: Make) -> None:
    listening: set[str] = set()

    def look(rollouts: RayRollouts, iteration: Iteration) -> None:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                sockets = process.net_connections("inet")
                listening.update(one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN)

    drive(probe_config(**RAY), look)
    assert listening
    assert all(ip_address(address).is_loopback for address in listening), listening


@pytest.mark.usefixtures("ray_here")
def test_a_killed_rollout_actor_is_replaced_and_a_collapsed_learner_put_back(probe_config: Make) -> None:
    def after(rollouts: RayRollouts, iteration: Iteration) -> None:
        if iteration.counters.iterations == 2:
            kill_a_rollout_actor(rollouts)

    def recovery(log: Log) -> Recovery | None:
        return Recovery(log.states[0][0], 0.5) if len(log.iterations) == 3 else None

    log = drive(probe_config(**RAY), after, recovery)
    assert log.iterations[-1].restarts == 1
    assert [i.report.version for i in log.iterations] == [1, 2, 3, 5, 6], "the state put back is a version"
    assert [float(learner["lr_scale"]) for learner, _ in log.states] == [1.0, 0.5, 0.5, 0.5]
    assert [i.counters.agent_steps for i in log.iterations] == [96, 192, 288, 384, 480]
    keys = log.episode_keys()
    assert set(keys.values()) == {1}
    assert {incarnation for _, incarnation, _ in keys} == {0, 1}


@pytest.mark.usefixtures("ray_here")
def test_more_deaths_than_allowed_stop_the_run(probe_config: Make) -> None:
    config = probe_config(**RAY | {"system": {"driver": "ray", "max_restarts": 0}})
    with pytest.raises(RuntimeError, match=r"rollout actor . died, and 0 restarts were used up"):
        drive(config, lambda rollouts, iteration: kill_a_rollout_actor(rollouts))


@pytest.mark.usefixtures("ray_here")
def test_a_learner_that_dies_ends_the_run_in_one_line(probe_config: Make) -> None:
    with pytest.raises(UserError, match="the learner died, with its process or its node, and the run ends"):
        drive(probe_config(**RAY), learner_dies_at=2)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("actors", [0, 6])
def test_an_elastic_run_takes_the_actors_that_there_is_room_for(actors: int, probe_config: Make) -> None:
    """Of 4 cores: 2 actors at first and then as many as are free, or as many of 6 as find room."""
    last: list[int] = []
    killed: list[int] = []

    def after(rollouts: RayRollouts, iteration: Iteration) -> None:
        last[:] = [iteration.actors]
        if iteration.actors == 4 and not killed:
            killed.append(iteration.counters.iterations)
            kill_a_rollout_actor(rollouts)
        if killed and iteration.actors == 4 and iteration.restarts:
            done.append(True)

    done: list[bool] = []
    config = probe_config(system={"driver": "ray"}, rollout={"actors": actors, "lanes": 3}, total_steps=10**7)
    log = drive(config, after, elastic=True, should_stop=lambda: bool(done))
    assert last == [4]
    assert {i.actors for i in log.iterations} >= {3, 4}, "nobody waited for the one that died"
    # A batch is one unroll of each that is there.
    assert {i.report.samples for i in log.iterations} <= {n * 48 for n in range(1, 5)}
    assert log.iterations[-1].restarts == 1
    assert set(log.episode_keys().values()) == {1}
