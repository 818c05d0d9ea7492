"""The asynchronous path on Ray: a learner that is slow, an actor that hangs, a shared network that dies."""

import fcntl
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import ray

from mario_dist.config import RunConfig
from mario_dist.system.feed import make_queue_feed
from mario_dist.system.plan import make_plan
from mario_dist.system.ray import ray_learner
from mario_dist.system.ray_cluster import connected
from mario_dist.system.ray_rollouts import RayRollouts, ray_rollouts
from mario_dist.system.topology import Counters, Iteration, Judge, train
from mario_dist.types import Arrays, EvalReport

Make = Callable[..., RunConfig]
RAY: dict[str, Any] = {
    "rollout": {"actors": 2, "lanes": 4},
    "total_steps": 10**9,
    "checkpoint": {"every_steps": 10**9},
}


class Log:
    """An observer that remembers; ``after`` is called with every iteration."""

    def __init__(self, after: Callable[[Iteration], None]) -> None:
        self.iterations: list[Iteration] = []
        self._after = after

    def iterated(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)
        self._after(iteration)

    def evaluated(self, counters: Counters, report: EvalReport, by: Judge) -> None: ...

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
    ) -> None: ...

    def metric(self, name: str) -> list[float]:
        return [i.report.metrics[name] for i in self.iterations]


@pytest.fixture(scope="module")
def ray_here(ray_lock: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    with ray_lock(fcntl.LOCK_SH), connected(None, None, cores=4):
        yield


def drive(config: RunConfig, after: Callable[[RayRollouts, Log], bool]) -> Log:
    """Train until ``after``, which is called with every iteration, says that it is enough."""
    enough: list[bool] = [False]

    def look(_: Iteration) -> None:
        enough[0] = enough[0] or after(rollouts, log)

    plan = make_plan(config, 3, gpu=False)
    log = Log(look)
    rollouts = ray_rollouts(config, plan, [], 0, gpu=False)
    learner = ray_learner(config, plan, None, gpu=False)
    try:
        feed = make_queue_feed(config, plan)
        assert train(rollouts, learner, feed, config, Counters(), log, lambda: enough[0]) == "stopped"
    finally:
        rollouts.close()
        learner.close()
    return log


def pid_of(actor: Any) -> int:
    pid: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    return pid


def shared_memory_mib() -> float:
    """What lies in Ray's object store."""
    name = "object_store_memory"
    used: float = ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)
    return used / 2**20


@pytest.mark.usefixtures("ray_here")
def test_the_lag_is_bounded_and_drops_are_counted_beside_a_slow_learner_and_a_hung_actor(
    impala_config: Make,
) -> None:
    bound, hung_for = 4, 6
    config = impala_config(
        **RAY | {"rollout": {"actors": 2, "lanes": 8, "unroll_length": 16}},
        env={"frame_size": [84, 84], "frame_stack": 4},
        algo={"reuse": 4, "batch_unrolls": 1},
        system={"driver": "ray", "overrun": "drop", "max_policy_lag": bound},
    )
    pids: list[int] = []
    stored: list[float] = []
    hung_at: list[int] = []
    woken_at: list[int] = []
    late_before: list[float] = []

    def after(rollouts: RayRollouts, log: Log) -> bool:
        metrics, count = log.iterations[-1].report.metrics, len(log.iterations)
        if not pids:
            pids.extend(pid_of(actor.handle) for actor in rollouts._actors.values())
        if count % 3 == 0:
            stored.append(shared_memory_mib())
        if not hung_at and count >= 8 and metrics["crowded_out_unrolls"] >= 5:
            os.kill(pids[0], signal.SIGSTOP)
            hung_at.append(count)
        elif hung_at and not woken_at and count >= hung_at[0] + hung_for:
            os.kill(pids[0], signal.SIGCONT)
            woken_at.append(count)
            late_before.append(metrics["late_unrolls"])
        return bool(woken_at) and (metrics["late_unrolls"] > late_before[0] or count > woken_at[0] + 30)

    log = drive(config, after)
    # The version that a batch is learned with less that which made it, of every batch.
    assert 1 <= max(log.metric("policy_lag")) <= bound
    assert log.metric("crowded_out_unrolls")[-1] >= 5
    # What the hung actor had begun was too old when it woke, and left out; the other went on meanwhile.
    assert log.metric("late_unrolls")[-1] > late_before[0]
    assert woken_at[0] - hung_at[0] >= hung_for
    dropped = log.metric("late_unrolls")[-1] + log.metric("crowded_out_unrolls")[-1]
    assert log.metric("dropped_steps")[-1] == dropped * 16 * 8
    # Whatever was collected was learned from once or counted as dropped.
    learned = sum(i.report.samples for i in log.iterations)
    assert log.iterations[-1].counters.agent_steps == learned + log.metric("dropped_steps")[-1]
    # 1.1 MiB an unroll: at most 3 in the queue, 2 + 2 at the learner and 2 on their way, and some weights.
    assert max(i.queue_depth for i in log.iterations) <= 3
    assert 1 < max(stored) <= 24
    keys = Counter((e.actor, e.incarnation, e.sequence) for i in log.iterations for e in i.episodes)
    assert set(keys.values()) == {1}


@pytest.mark.usefixtures("ray_here")
def test_actors_share_a_network_that_dies_and_are_held_by_a_slow_learner(impala_config: Make) -> None:
    rollout = {"actors": 2, "lanes": 4, "groups": 2, "inference": "shared"}
    config = impala_config(
        **RAY | {"rollout": {**rollout, "unroll_length": 16}},
        algo={"reuse": 80, "batch_unrolls": 2},
        system={"driver": "ray"},
    )
    killed_at: list[int] = []

    def after(rollouts: RayRollouts, log: Log) -> bool:
        count = len(log.iterations)
        if not killed_at and count >= 10:
            os.kill(pid_of(rollouts._inference), signal.SIGKILL)
            killed_at.append(count)
        return bool(killed_at) and count >= killed_at[0] + 15

    log = drive(config, after)
    assert log.iterations[-1].restarts == 0, "the actors lived on"
    assert sum(log.metric("actors_wait_s")) > 0
    assert log.metric("dropped_steps")[-1] == 0
    assert max(log.metric("policy_lag")) <= config.max_policy_lag
    # The newest weights reach the network before and after its death.
    assert log.iterations[-1].report.version >= 25
    assert log.metric("policy_lag")[-1] <= 6
    learned = sum(i.report.samples for i in log.iterations)
    assert log.iterations[-1].counters.agent_steps == learned
