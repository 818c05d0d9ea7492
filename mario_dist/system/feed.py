"""What lies between rollouts and learner, and which of them may go on: a queue, or a replay and its limiter.

Bookkeeping over handles, the same for every driver. An order is what the learner learns from next, as the
arguments that its driver passes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mario_dist.algos.apex import ApexConfig
from mario_dist.algos.impala import ImpalaConfig
from mario_dist.config import RunConfig
from mario_dist.replay import BoundedQueue, RateLimiter
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected, Order, ReplayPort
from mario_dist.types import Arrays, StepReport


class Feed[U](Protocol):
    """``in_flight`` counts the orders that the learner has."""

    @property
    def least(self) -> int:
        """How many unrolls to wait for at once, of those under way."""

    @property
    def depth(self) -> int:
        """How many unrolls wait for the learner."""

    @property
    def filling(self) -> bool:
        """Whether experience comes in and learning has not begun."""

    def resize(self, actors: int) -> None:
        """There are so many actors from now on."""

    def may_collect(self, in_flight: int) -> bool:
        """Whether idle workers may make unrolls."""

    def put(self, collected: Sequence[Collected[U]]) -> None: ...

    def order(self, version: int, *, under_way: int = 0, draining: bool = False) -> Order | None:
        """What the learner should do now, if anything.

        version: of the weights that it will have by then. under_way: unrolls that are being made.
        draining: no more comes in before a pause.
        """

    def learned(self, report: StepReport) -> StepReport:
        """Take note of what came of an order; the report with what the feed adds to it."""

    def metrics(self) -> Mapping[str, float]:
        """Scalars to log."""

    def state(self) -> Arrays:
        """What a checkpoint keeps beside the learner's state, under names of its own."""

    @property
    def save_replay(self) -> Callable[[Path], None] | None:
        """What writes the replay into a checkpoint; None where there is none or it is not kept."""


class QueueFeed[U]:
    """Unrolls of whichever actors, each learned from once, in the order in which they came.

    in_step: a batch is one unroll of every actor that is there: all are waited for, and they may be at most
    ``max_lag`` orders ahead of the learner. Else it is ``batch`` unrolls (0: as many as half of the actors),
    and the actors are held back while a whole one waits, or so much that what they began now would be too
    old; with ``drop``, never: what is too much pushes the oldest out. An unroll that by its turn is more than
    ``max_lag`` versions old is left out, and whatever is left out is counted.
    """

    filling = False
    save_replay = None

    def __init__(
        self, *, actors: int, max_lag: int, batch: int = 0, in_step: bool = False, drop: bool = False
    ) -> None:
        self.least = _ALL if in_step else 1
        self._wanted = batch
        self._max_lag = max_lag
        self._in_step = in_step
        self._drop = drop
        self._queue: BoundedQueue[Collected[U]] = BoundedQueue(1)
        self._late_unrolls = self._crowded_out_unrolls = self._dropped_steps = 0
        self.resize(actors)

    def resize(self, actors: int) -> None:
        # Half of the actors: with more, the fast ones wait for the slow; with one, a batch is small.
        self._batch = self._wanted or max(1, actors // 2)
        # What waits already keeps its place where the actors become fewer.
        self._queue.grow(self._batch + actors)

    @property
    def depth(self) -> int:
        return len(self._queue)

    def may_collect(self, in_flight: int) -> bool:
        if self._in_step:
            # A part of a batch waits for the actors that are missing there, and they are at it already.
            return not self.depth and in_flight <= self._max_lag
        # The steps that the learner makes before it comes to what is begun now.
        ahead = in_flight + -(-self.depth // self._batch)
        return self._drop or not ahead or (self.depth < self._batch and ahead <= self._max_lag)

    def put(self, collected: Sequence[Collected[U]]) -> None:
        for item in collected:
            if not self._queue.free and self._drop:
                self._crowded_out_unrolls += 1
                self._dropped_steps += self._queue.take(1)[0].steps
            self._queue.put(item)

    def order(self, version: int, *, under_way: int = 0, draining: bool = False) -> Order | None:
        if self._in_step:
            whole = 0 if under_way else self.depth
            return tuple(item.unroll for item in self._queue.take(whole)) or None
        late = self._queue.discard(lambda item: version - item.weights_version > self._max_lag)
        self._late_unrolls += len(late)
        self._dropped_steps += sum(item.steps for item in late)
        # Before a pause, what is left makes a smaller batch: nobody would learn from it afterwards.
        count = min(self._batch, self.depth) if draining else self._batch
        if not count or count > self.depth:
            return None
        return tuple(item.unroll for item in self._queue.take(count))

    def learned(self, report: StepReport) -> StepReport:
        return replace(report, metrics={**report.metrics, **self.metrics()})

    def metrics(self) -> Mapping[str, float]:
        if self._in_step:
            return {}
        return {
            "late_unrolls": float(self._late_unrolls),
            "crowded_out_unrolls": float(self._crowded_out_unrolls),
            "dropped_steps": float(self._dropped_steps),
        }

    def state(self) -> Arrays:
        return {}


class ReplayFeed[U]:
    """A replay, from which the learner samples as often as the limiter allows. Any policy lag is borne.

    An order is a number of updates.
    """

    least = 1
    depth = 0

    def __init__(
        self,
        replay: ReplayPort[U],
        limiter: RateLimiter,
        *,
        batch: int,
        updates: int,
        keep: bool,
        ahead: int = 0,
    ) -> None:
        """ahead: agent steps that each actor may be ahead of the learner."""
        self._replay = replay
        self.limiter = limiter
        self._ahead = ahead
        self._batch = batch
        self._updates = updates
        self._keep = keep
        self._lost = 0.0

    @property
    def filling(self) -> bool:
        return self.limiter.filling

    def resize(self, actors: int) -> None:
        self.limiter.tolerance = actors * self._ahead * self.limiter.samples_per_insert

    def may_collect(self, in_flight: int) -> bool:
        return self.limiter.may_insert()

    def put(self, collected: Sequence[Collected[U]]) -> None:
        self._replay.add(collected)
        self.limiter.inserted += sum(item.steps for item in collected)

    def order(self, version: int, *, under_way: int = 0, draining: bool = False) -> Order | None:
        updates = 0 if draining else self.limiter.batches_due(self._batch, self._updates)
        self.limiter.sampled += updates * self._batch
        return (updates,) if updates else None

    def learned(self, report: StepReport) -> StepReport:
        """Where a shard's death left less than learning begins with, fill up first."""
        metrics = {**self.metrics(), **report.metrics}
        if "replay_lost" in metrics:
            metrics["replay_lost"] += self._replay.lost
            size = int(metrics["replay_size"])
            if metrics["replay_lost"] > self._lost and size < self.limiter.min_size:
                self.limiter.restart(size)
            self._lost = metrics["replay_lost"]
        return replace(report, metrics=metrics)

    def metrics(self) -> Mapping[str, float]:
        filled = {"replay_size": float(self.limiter.inserted)} if self.filling else {}
        return {**filled, "replay_ratio": self.limiter.replay_ratio}

    def state(self) -> Arrays:
        limiter = self.limiter
        numbers = [limiter.inserted, limiter.sampled, limiter.samples_per_insert, limiter.min_size]
        return {_LIMITER: np.array(numbers)}

    def restore(self, learner_state: Arrays) -> None:
        """Go on with the ratio of a run whose replay is there again; another one is kept from here on."""
        limiter = self.limiter
        inserted, sampled, *kind = learner_state[_LIMITER].tolist()
        if kind == [limiter.samples_per_insert, limiter.min_size]:
            limiter.inserted, limiter.sampled = int(inserted), int(sampled)
        else:
            limiter.inserted = min(int(inserted), limiter.min_size)

    @property
    def save_replay(self) -> Callable[[Path], None] | None:
        return self._replay.save_replay if self._keep else None


_LIMITER = "limiter"
_ALL = 2**31
"""More than can be under way."""


def make_queue_feed[U](config: RunConfig, plan: Plan) -> QueueFeed[U]:
    """The queue of a run whose learner takes each unroll once."""
    algo = config.algo
    if isinstance(algo, ImpalaConfig) and config.max_policy_lag > 0:
        return QueueFeed(
            actors=plan.actors,
            batch=algo.batch_unrolls,
            max_lag=config.max_policy_lag,
            drop=config.system.overrun == "drop",
        )
    return QueueFeed(actors=plan.actors, max_lag=config.max_policy_lag, in_step=True)


def make_replay_feed[U](config: RunConfig, plan: Plan, replay: ReplayPort[U]) -> ReplayFeed[U]:
    """The replay of a run, with its limiter. In turn, the actors wait for whatever is due; beside the learner
    they may be two unrolls each ahead, which is the least with which none waits for another's."""
    algo, ratio = config.algo, config.replay.samples_per_insert
    assert isinstance(algo, ApexConfig)
    unroll = plan.lanes * config.rollout.unroll_length
    # With two unrolls of one actor, something can be sampled.
    least = (plan.actors + 1) * unroll
    feed = ReplayFeed(
        replay,
        RateLimiter(ratio, max(config.replay.min_size, least), tolerance=0.0),
        batch=algo.batch,
        updates=algo.publish_every,
        keep=config.replay.checkpoint,
        ahead=0 if plan.in_turn else 2 * unroll,
    )
    feed.resize(plan.actors)
    return feed
