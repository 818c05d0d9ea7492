"""Ape-X on Ray: real shards, really killed."""

import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mario_dist.config import RunConfig
from mario_dist.nets import get_weights
from mario_dist.system.build import make_network, make_worker
from mario_dist.system.feed import make_replay_feed
from mario_dist.system.plan import Plan, make_plan
from mario_dist.system.ports import Collected
from mario_dist.system.ray_cluster import connected
from mario_dist.system.ray_replay import ray_replay_learner
from mario_dist.system.ray_rollouts import RayRollouts
from mario_dist.system.ray_shards import RayReplay, RayShards
from mario_dist.system.topology import Counters, Iteration, Judge, train
from mario_dist.types import Arrays, EvalReport

Make = Callable[..., RunConfig]
RAY: dict[str, Any] = {
    "system": {"driver": "ray"},
    "rollout": {"actors": 2, "lanes": 4},
    "replay": {"capacity": 1024, "min_size": 256, "shards": 2, "samples_per_insert": 2.0},
    "total_steps": 3072,
    "checkpoint": {"every_steps": 10**9},
}


class Log:
    """An observer that remembers; ``after`` is called with every iteration."""

    def __init__(self, after: Callable[[Iteration], None]) -> None:
        self.iterations: list[Iteration] = []
        self.workers: list[Arrays] = []
        self._after = after

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)
        self._after(iteration)

    def evaluated(self, counters: Counters, report: EvalReport, by: Judge) -> None:
        assert report.protocol["greedy"] is True

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        done: bool = False,
        save_replay: Callable[[Path], None] | None = None,
    ) -> None:
        self.workers = workers

    def metric(self, name: str) -> list[float]:
        return [i.report.metrics[name] for i in self.iterations if name in i.report.metrics]


@pytest.fixture(scope="module")
def ray_here(ray_lock: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    with ray_lock(fcntl.LOCK_SH), connected(None, None, cores=4):
        yield


class Run:
    """The topology on real actors."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.plan: Plan = make_plan(config, 3, gpu=False)
        self.rollouts = RayRollouts(config, self.plan, [], 0)
        self.shards = RayShards(config, self.plan)
        self.learner = ray_replay_learner(config, self.plan, None, self.shards, gpu=False)
        self.feed = make_replay_feed(config, self.plan, self.shards)
        self.log = Log(lambda iteration: self.after(iteration))
        self.after: Callable[[Iteration], None] = lambda iteration: None

    def go(self, until: Callable[[], bool] = lambda: False) -> Log:
        try:
            train(self.rollouts, self.learner, self.feed, self.config, Counters(), self.log, until)
        finally:
            self.rollouts.close()
            self.learner.close()
            self.shards.close()
        return self.log

    def kill(self, shard: int) -> None:
        """SIGKILL, as the kernel's OOM killer would."""
        os.kill(pid_of(self.shards.handles[shard]), signal.SIGKILL)


@pytest.mark.usefixtures("ray_here")
def test_it_fills_learns_and_keeps_its_counts(apex_config: Make) -> None:
    log = Run(apex_config(**RAY, evaluation={"every_steps": 3072, "episodes": 2})).go()
    assert len(log.workers) == 2
    assert log.iterations[-1].counters.agent_steps >= 3072
    assert log.metric("replay_size")[-1] == 1024
    # Two unrolls each may be ahead of the learner, and two orders under way.
    assert log.metric("replay_ratio")[-1] == pytest.approx(2.0, rel=0.25)
    versions = [i.report.version for i in log.iterations]
    assert versions == sorted(versions)
    assert versions[-1] * 32 == pytest.approx(2.0 * (3072 - 256), rel=0.25)
    assert log.metric("replay_lost")[-1] == 0
    keys = Counter((e.actor, e.incarnation, e.sequence) for i in log.iterations for e in i.episodes)
    assert keys
    assert set(keys.values()) == {1}


@pytest.mark.usefixtures("ray_here")
def test_a_killed_shard_comes_back_empty_while_training_goes_on(apex_config: Make) -> None:
    run = Run(apex_config(**RAY | {"total_steps": 500_000}))
    killed_at: list[int] = []
    learned_meanwhile: list[float] = []
    refilled: list[int] = []

    def after(iteration: Iteration) -> None:
        steps, metrics = iteration.counters.agent_steps, iteration.report.metrics
        if not killed_at and steps >= 2048 and iteration.report.samples:
            run.kill(shard=0)
            killed_at.append(steps)
        elif killed_at and metrics.get("replay_lost", 0.0) >= 512:
            if metrics["replay_size"] == 512:
                learned_meanwhile.append(metrics["loss"])
            elif metrics["replay_size"] == 1024:
                refilled.append(steps)

    run.after = after
    log = run.go(until=lambda: bool(refilled))
    assert refilled
    assert learned_meanwhile, "with the shard that was left"
    assert np.isfinite(learned_meanwhile).all()
    # All that the shard held, and at most the unrolls that were on their way to it.
    assert 512 <= log.metric("replay_lost")[-1] <= 512 + 8 * 64
    assert log.metric("replay_shard_restarts")[-1] == 1


@pytest.mark.usefixtures("ray_here")
def test_a_slow_learner_holds_the_actors_back_but_not_from_filling_a_lost_replay(apex_config: Make) -> None:
    """At a replay ratio that the learner cannot keep up with, the actors wait, and their lead is bounded.

    When the only shard dies then, the learner has no batch and the actors no leave: neither may wait for the
    other.
    """
    config = apex_config(
        **RAY
        | {
            "total_steps": 500_000,
            "rollout": {"actors": 1, "lanes": 4},
            "replay": {**RAY["replay"], "shards": 1, "samples_per_insert": 32.0},
        }
    )
    run = Run(config)
    balances: list[float] = []
    waited: list[float] = []
    learned_again: list[int] = []

    def after(iteration: Iteration) -> None:
        metrics = iteration.report.metrics
        if sum(waited) <= 0.2:
            balances.append(run.feed.limiter.balance)
            waited.append(metrics["actors_wait_s"])
            if sum(waited) > 0.2:
                run.kill(shard=0)
        elif metrics.get("replay_lost") and iteration.report.samples and metrics["replay_size"]:
            learned_again.append(iteration.counters.agent_steps)

    run.after = after
    run.go(until=lambda: bool(learned_again))
    unroll = 64 * 32.0
    assert max(balances) <= 2 * unroll + unroll
    assert learned_again


def pid_of(shard: Any) -> int:
    pid: int = ray.get(shard.__ray_call__.remote(lambda self: os.getpid()))
    return pid


def await_return(shard: Any) -> None:
    """Until the next life of a killed shard answers."""
    for _ in range(300):
        try:
            ray.get(shard.stats.remote())
        except ray.exceptions.RayActorError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the shard did not come back")


@pytest.mark.usefixtures("ray_here")
def test_a_death_that_nobody_saw_is_counted_and_one_while_saving_leaves_no_part(
    apex_config: Make, tmp_path: Path
) -> None:
    config = apex_config(**RAY | {"rollout": {"actors": 1, "lanes": 4}, "replay": {"capacity": 512}})
    plan = make_plan(config, 3, gpu=False)
    worker, weights = make_worker(config, lanes=4, threads=1), get_weights(make_network(config), 0)
    shards = RayShards(config, plan)
    try:
        replay = RayReplay(shards.handles, batch=32, prefetch=2, seed=0)

        def fill() -> None:
            for _ in range(3):
                shards.add([Collected(ray.put(worker.collect(weights).unroll), 0, 64, 0, ())])
            shards.settle(0)

        fill()
        while replay.stats().size < 192:
            assert replay.sample(32) is not None
        shards.save_replay(tmp_path / "whole")
        assert len(list((tmp_path / "whole" / "shard-0").glob("*.npy"))) > 5

        os.kill(pid_of(shards.handles[0]), signal.SIGKILL)
        await_return(shards.handles[0])
        # The batches asked for before its death still come; then there is nothing.
        while replay.sample(32) is not None:
            pass
        assert replay.losses() == {"replay_lost": 192.0, "replay_shard_restarts": 1.0}
        fill()
        drawn = replay.sample(32)
        assert drawn is not None
        replay.update(drawn, np.ones(32, dtype=np.float32))

        os.kill(pid_of(shards.handles[0]), signal.SIGKILL)
        shards.save_replay(tmp_path / "broken")
        assert not (tmp_path / "broken").exists()
        await_return(shards.handles[0])
        shards.load_replay(tmp_path / "whole")
        assert ray.get(shards.handles[0].stats.remote()).size == 192
        with pytest.raises(ValueError, match="0 shards does not fit 1"):
            shards.load_replay(tmp_path / "broken")
    finally:
        shards.close()
        worker.close()


@pytest.mark.usefixtures("ray_here")
def test_a_defect_in_a_shard_is_not_taken_for_its_death(apex_config: Make) -> None:
    config = apex_config(**RAY | {"replay": {**RAY["replay"], "shards": 1}})
    shards = RayShards(config, make_plan(config, 3, gpu=False))
    try:
        shards.add([Collected("no unroll", 0, 64, 0, ())])
        with pytest.raises(AttributeError, match="action"):
            shards.settle(0)
        assert shards.lost == 0
    finally:
        shards.close()
