"""Ape-X's learner on Ray: an actor that draws from the shards, and what the topology sees of both."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.system.build import make_replay_learner
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected
from mario_dist.system.ray import Ref, get
from mario_dist.system.ray_shards import RayReplay, RayShards, is_there
from mario_dist.system.replay_trainer import ReplayTrainer
from mario_dist.types import Arrays, StepReport, Weights

_ORDERS = 2
"""Orders that the learner may have at once: it never waits for this process between two."""


class ReplayLearnerActor:
    """A thin shell around ``ReplayTrainer``."""

    def __init__(self, config: RunConfig, plan: Plan, state: Arrays | None, shards: Sequence[Any]) -> None:
        assert isinstance(config.algo, ApexConfig)
        self._learner = make_replay_learner(config, min(plan.learner_threads, machine.cores()))
        if state is not None:
            self._learner.restore(state)
        replay = RayReplay(shards, config.algo.batch, config.replay.prefetch, config.seed)
        self._trainer = ReplayTrainer(self._learner, replay, config.algo)

    def run(self, updates: int, progress: float) -> tuple[StepReport, Weights]:
        return self._trainer.run(updates, progress), self._learner.weights()

    def weights(self) -> Weights:
        return self._learner.weights()

    def state(self) -> Arrays:
        return self._learner.state()


class RayReplayLearner:
    """The shards and the learner actor, by handle."""

    concurrent = True

    def __init__(self, config: RunConfig, plan: Plan, state: Arrays | None, *, gpu: bool) -> None:
        self.shards = RayShards(config, plan)
        learner: Any = ray.remote(num_cpus=plan.learner_threads, num_gpus=int(gpu))(ReplayLearnerActor)
        self._actor: Any = learner.remote(config, plan, state, self.shards.handles)
        self._weights: Ref = self._actor.weights.remote()
        self._orders: deque[tuple[Ref, Ref]] = deque()  # (report, weights)

    @property
    def in_flight(self) -> int:
        return len(self._orders)

    @property
    def free(self) -> bool:
        return len(self._orders) < _ORDERS

    def add(self, collected: Sequence[Collected[Ref]]) -> None:
        for item in collected:
            self.shards.add(item.actor, item.steps, item.unroll)

    def submit(self, updates: int, progress: float) -> None:
        self._orders.append(self._actor.run.options(num_returns=2).remote(updates, progress))

    def poll(self, *, block: bool) -> StepReport | None:
        if not self._orders:
            return None
        report_ref, weights_ref = self._orders[0]
        if not block and not is_there(report_ref):
            return None
        report: StepReport = get(report_ref)
        del self._orders[0]
        self._weights = weights_ref
        lost = report.metrics["replay_lost"] + self.shards.lost
        return dataclasses.replace(report, metrics={**report.metrics, "replay_lost": lost})

    def weights(self) -> Ref:
        """Those of the newest order polled: of one that goes on, nobody knows when they come."""
        return self._weights

    def state(self) -> Arrays:
        state: Arrays = get(self._actor.state.remote())
        return state

    def save_replay(self, directory: Path) -> None:
        self.shards.save(directory)

    def load_replay(self, directory: Path) -> None:
        self.shards.load(directory)

    def close(self) -> None:
        ray.kill(self._actor)
        self.shards.close()
