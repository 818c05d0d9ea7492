"""The topology in one process: laptops, debugging, tests. Exactly reproducible from a seed."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.evaluation import EvalProtocol, evaluate
from mario_dist.learner import Learner, ReplayLearner
from mario_dist.nets import set_weights
from mario_dist.replay import ShardedReplay
from mario_dist.system.build import (
    make_learner,
    make_network,
    make_replay_learner,
    make_shard,
    make_worker,
)
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected, Order
from mario_dist.system.replay_trainer import ReplayTrainer
from mario_dist.types import Arrays, EvalReport, StepReport, Unroll, Weights


class LocalRollouts:
    """Workers that collect one after the other when ``gather`` is called; each uses all threads."""

    def __init__(
        self, config: RunConfig, plan: Plan, states: Sequence[Arrays] = (), incarnation: int = 0
    ) -> None:
        self._config = config
        self._threads = plan.env_threads
        self._torch_threads = plan.actor_torch_threads
        self._workers = [
            make_worker(
                config,
                lanes=plan.lanes,
                threads=plan.env_threads,
                actor=actor,
                actors=plan.actors,
                incarnation=incarnation,
            )
            for actor in range(plan.actors)
        ]
        for worker, state in zip(self._workers, states, strict=False):
            if state:
                worker.restore(state)
        self._asked: tuple[Weights, float] | None = None

    @property
    def n_actors(self) -> int:
        return len(self._workers)

    @property
    def restarts(self) -> int:
        return 0

    @property
    def under_way(self) -> int:
        return 0 if self._asked is None else self.n_actors

    def submit(self, weights: Weights, progress: float) -> None:
        self._asked = weights, progress

    def gather(self, least: int, unless: Any = None) -> list[Collected[Unroll]]:
        if self._asked is None:
            return []
        weights, progress = self._asked
        self._asked = None
        torch.set_num_threads(self._torch_threads)
        results = [worker.collect(weights, progress) for worker in self._workers]
        return [
            Collected(u, u.actor, u.steps, u.weights_version, result.episodes, result.seconds)
            for result in results
            for u in (result.unroll,)
        ]

    def state(self) -> list[Arrays]:
        return [worker.state() for worker in self._workers]

    def evaluate(self, weights: Weights, protocol: EvalProtocol) -> EvalReport:
        torch.set_num_threads(self._torch_threads)
        network = make_network(self._config)
        set_weights(network, weights.arrays)
        return evaluate(network, self._config.env, protocol, self._threads)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class LocalReplay:
    """The shards of a replay in this process."""

    lost = 0

    def __init__(self, config: RunConfig, plan: Plan) -> None:
        shards = [
            make_shard(config, lanes=plan.lanes, shard=s, shards=plan.shards) for s in range(plan.shards)
        ]
        self.shards = ShardedReplay(shards, config.seed)

    def add(self, collected: Sequence[Collected[Unroll]]) -> None:
        for item in collected:
            self.shards.add(item.unroll)

    def save_replay(self, directory: Path) -> None:
        self.shards.save(directory)

    def load_replay(self, directory: Path) -> None:
        """Raises ``ValueError`` where it is of other shards."""
        self.shards.load(directory)


class LocalLearner:
    """A learner in this process; it learns when it is polled.

    learn: from an order's parts, and the done part of the run.
    """

    concurrent = False
    next_report = None

    def __init__(self, learner: Learner | ReplayLearner, learn: Callable[[Order, float], StepReport]) -> None:
        self._learner = learner
        self._learn = learn
        self._orders: deque[tuple[Order, float]] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._orders)

    @property
    def free(self) -> bool:
        return not self._orders

    def submit(self, order: Order, progress: float) -> None:
        self._orders.append((order, progress))

    def poll(self, *, block: bool) -> StepReport | None:
        if not self._orders:
            return None
        at, cpu = time.perf_counter(), time.process_time()
        report = self._learn(*self._orders.popleft())
        seconds = {"learn_cpu_s": time.process_time() - cpu, "learner_s": time.perf_counter() - at}
        return replace(report, metrics={**report.metrics, **seconds})

    def weights(self) -> Weights:
        return self._learner.weights()

    def state(self) -> Arrays:
        return self._learner.state()

    def recover(self, state: Arrays, lr_factor: float) -> None:
        self._learner.recover(state, lr_factor)


def local_learner(config: RunConfig, plan: Plan, state: Arrays | None) -> LocalLearner:
    """A learner that takes each unroll once."""
    learner = make_learner(config, plan.learner_threads)
    if state is not None:
        learner.restore(state)
    return LocalLearner(learner, learner.step)


def local_replay_learner(
    config: RunConfig, plan: Plan, state: Arrays | None, replay: LocalReplay
) -> LocalLearner:
    """A learner that draws from ``replay``."""
    assert isinstance(config.algo, ApexConfig)
    learner = make_replay_learner(config, plan.learner_threads)
    if state is not None:
        learner.restore(state)
    trainer = ReplayTrainer(learner, replay.shards, config.algo)
    return LocalLearner(learner, lambda order, progress: trainer.run(order[0], progress))
