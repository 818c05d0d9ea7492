"""Ape-X on Ray: replay shards as actors, and a learner actor that draws from them.

Unrolls go from rollout actor to shard and batches from shard to learner; this process passes references.
Ray restarts a shard that died, empty, behind the same handle.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.replay import allocate, merge, total_stats
from mario_dist.system.build import make_replay_learner, make_shard
from mario_dist.system.plan import Plan, shard_bytes
from mario_dist.system.ports import Collected
from mario_dist.system.ray import Ref, get, wait_for
from mario_dist.system.replay_trainer import ReplayTrainer
from mario_dist.types import F32, I64, Arrays, ReplayStats, StepReport, Transitions, Unroll, Weights

_ORDERS = 2
"""Orders that the learner may have at once: it never waits for this process between two."""

_ADDS = 2
"""Unrolls on their way to a shard, at most."""

_EMPTY = ReplayStats(0, 0, 0.0, 0.0, 0.0, 0, "")


class ShardActor:
    """A thin shell around ``PrioritisedReplay``."""

    def __init__(self, config: RunConfig, plan: Plan, shard: int) -> None:
        self._replay = make_shard(config, lanes=plan.lanes, shard=shard, shards=plan.shards)

    def add(self, unroll: Unroll) -> None:
        self._replay.add(unroll)

    def sample(self, count: int) -> tuple[Transitions | None, ReplayStats]:
        """None where there is nothing: this shard may have been restarted since it was last heard of."""
        return self._replay.sample(count) if self._replay.mass else None, self._replay.stats()

    def update(self, id_B: I64, error_B: F32) -> None:
        self._replay.update(id_B, error_B)

    def stats(self) -> ReplayStats:
        return self._replay.stats()

    def save(self, directory: Path) -> None:
        self._replay.save(directory)

    def load(self, directory: Path) -> None:
        self._replay.load(directory)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A batch that is under way: what was asked of each shard, by which share of the whole mass."""

    pieces: tuple[tuple[int, float, Ref], ...]


class RayReplay:
    """The shards as the learner's ``SampleSource``: batches asked for ahead, priorities written back.

    A shard's mass is known from its last answer; one that is empty or died is asked how it is until it has
    something again, while the others give the batches.
    """

    def __init__(self, shards: Sequence[Any], batch: int, prefetch: int, seed: int) -> None:
        self._shards = shards
        self._batch = batch
        self._prefetch = prefetch
        self._rng = np.random.default_rng(seed)
        self._known: list[ReplayStats] = [_EMPTY] * len(shards)
        self._asking: dict[int, Ref] = {}
        self._ahead: deque[_Asked] = deque()
        self._lost = self._restarts = 0

    def sample(self, count: int) -> Transitions:
        """The oldest batch asked for. What a shard that died owed it is left out."""
        assert count == self._batch
        while True:
            while len(self._ahead) < self._prefetch:
                self._ask_ahead()
            pieces = []
            for shard, share, ref in self._ahead.popleft().pieces:
                try:
                    transitions, stats = ray.get(ref)
                except RayActorError as error:
                    self._died(shard, error)
                else:
                    self._learn_of(shard, stats)
                    if transitions is not None:
                        pieces.append((shard, share, transitions))
            if pieces:
                return merge(pieces)

    def update(self, batch: Transitions, error_B: F32) -> None:
        for shard, actor in enumerate(self._shards):
            mine_B = batch.shard_B == shard
            if mine_B.any():
                # Nobody waits for it: a shard that dies takes its priorities along.
                actor.update.remote(batch.id_B[mine_B], error_B[mine_B])

    def stats(self) -> ReplayStats:
        return total_stats(self._known)

    def losses(self) -> Mapping[str, float]:
        return {"replay_lost": float(self._lost), "replay_shard_restarts": float(self._restarts)}

    def _ask_ahead(self) -> None:
        """Ask for one more batch, as soon as any shard has something."""
        self._ask_the_empty()
        mass_S = np.array([stats.mass for stats in self._known])
        while mass_S.sum() <= 0.0:
            wait_for(list(self._asking.values()), 1)
            self._ask_the_empty()
            mass_S = np.array([stats.mass for stats in self._known])
        count_S = allocate(mass_S, self._batch, self._rng)
        share_S = mass_S / mass_S.sum()
        self._ahead.append(
            _Asked(
                tuple(
                    (s, float(share_S[s]), self._shards[s].sample.remote(int(count_S[s])))
                    for s in np.flatnonzero(count_S).tolist()
                )
            )
        )

    def _ask_the_empty(self) -> None:
        for shard, ref in list(self._asking.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            del self._asking[shard]
            try:
                self._learn_of(shard, get(ref))
            except RayActorError as error:
                self._died(shard, error)
        for shard, stats in enumerate(self._known):
            if stats.mass <= 0.0 and shard not in self._asking:
                self._asking[shard] = self._shards[shard].stats.remote()

    def _learn_of(self, shard: int, stats: ReplayStats) -> None:
        before = self._known[shard]
        if before.instance and stats.instance != before.instance:
            self._restarts += 1
            self._lost += before.size
        self._known[shard] = stats

    def _died(self, shard: int, error: RayActorError) -> None:
        """Nothing is asked of a dead shard; what it held is counted once, when its next life answers."""
        if isinstance(error, RayTaskError) or error.actor_init_failed:
            raise error  # not its death but a defect, which would repeat
        self._known[shard] = replace(self._known[shard], mass=0.0, priority_mean=0.0, priority_max=0.0)


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
        shard_class: Any = ray.remote(num_cpus=0, memory=shard_bytes(config, plan), max_restarts=-1)(
            ShardActor
        )
        self.shards: list[Any] = [shard_class.remote(config, plan, s) for s in range(plan.shards)]
        actor_class: Any = ray.remote(num_cpus=plan.learner_threads, num_gpus=1 if gpu else 0)(
            ReplayLearnerActor
        )
        self._actor: Any = actor_class.remote(config, plan, state, self.shards)
        self._weights: Ref = self._actor.weights.remote()
        self._orders: deque[tuple[Ref, Ref]] = deque()  # (report, weights)
        self._adding: deque[tuple[Ref, int]] = deque()  # (done, agent steps)
        self._lost = 0

    @property
    def in_flight(self) -> int:
        return len(self._orders)

    @property
    def free(self) -> bool:
        return len(self._orders) < _ORDERS

    def add(self, collected: Sequence[Collected[Ref]]) -> None:
        """The unrolls of one actor go to one shard, in order; at most two a shard are under way."""
        for item in collected:
            shard = self.shards[item.actor % len(self.shards)]
            self._adding.append((shard.add.remote(item.unroll), item.steps))
        while len(self._adding) > _ADDS * len(self.shards):
            self._await_add()

    def submit(self, updates: int, progress: float) -> None:
        self._orders.append(self._actor.run.options(num_returns=2).remote(updates, progress))

    def poll(self, *, block: bool) -> StepReport | None:
        if not self._orders:
            return None
        report_ref, weights_ref = self._orders[0]
        if not block and not ray.wait([report_ref], timeout=0)[0]:
            return None
        report: StepReport = get(report_ref)
        del self._orders[0]
        self._weights = weights_ref
        lost = report.metrics["replay_lost"] + self._lost
        return replace(report, metrics={**report.metrics, "replay_lost": lost})

    def weights(self) -> Ref:
        """Those of the newest order polled: of one that goes on, nobody knows when they come."""
        return self._weights

    def state(self) -> Arrays:
        state: Arrays = get(self._actor.state.remote())
        return state

    def save_replay(self, directory: Path) -> None:
        while self._adding:
            self._await_add()
        self._every_shard("save", directory.resolve())

    def load_replay(self, directory: Path) -> None:
        saved = len(list(directory.glob("shard-*")))
        if saved != len(self.shards):
            raise ValueError(f"a replay of {saved} shards does not fit {len(self.shards)}")
        self._every_shard("load", directory.resolve())

    def close(self) -> None:
        ray.kill(self._actor)
        for shard in self.shards:
            ray.kill(shard)

    def _every_shard(self, method: str, directory: Path) -> None:
        get([getattr(s, method).remote(directory / f"shard-{i}") for i, s in enumerate(self.shards)])

    def _await_add(self) -> None:
        done, steps = self._adding.popleft()
        try:
            get(done)
        except RayActorError as error:
            if isinstance(error, RayTaskError) or error.actor_init_failed:
                raise
            self._lost += steps
