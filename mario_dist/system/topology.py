"""The one picture of DESIGN.md as a function: rollouts -> replay -> learner -> weights -> rollouts.

``train`` is the picture with a queue, from which each unroll is learned once; ``train_replayed`` the one with
a replay, where rollouts and learner go on side by side and a limiter keeps them in step.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.replay import BoundedQueue, RateLimiter
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected, LearnerPort, ReplayLearnerPort, Rollouts
from mario_dist.types import F64, Arrays, EpisodeRecord, EvalReport, StepReport

Outcome = Literal["finished", "stopped"]


@dataclass(frozen=True, slots=True)
class Counters:
    """How far a run is. ``agent_steps`` counts steps of all lanes."""

    agent_steps: int = 0
    iterations: int = 0
    episodes: int = 0


@dataclass(frozen=True, slots=True)
class Iteration:
    """What happened between two learner steps, for whoever watches. Seconds are wall-clock.

    worker_seconds: where the workers' time went (environment, inference), the mean over them.
    """

    counters: Counters
    episodes: tuple[EpisodeRecord, ...]
    report: StepReport
    queue_depth: int
    restarts: int
    collect_s: float
    learn_s: float
    worker_seconds: Mapping[str, float]


class Observer(Protocol):
    """Who keeps what a run produces."""

    def iterated(self, iteration: Iteration) -> None: ...

    def evaluated(self, counters: Counters, report: EvalReport) -> None: ...

    def checkpoint(
        self,
        counters: Counters,
        learner: Arrays,
        workers: list[Arrays],
        evaluation: EvalReport | None,
        *,
        last: bool,
        save_replay: Callable[[Path], None] | None = None,
    ) -> None: ...


def train[W, U](
    rollouts: Rollouts[W, U],
    learner: LearnerPort[W, U],
    config: RunConfig,
    counters: Counters,
    observer: Observer,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Run until ``config.total_steps`` or until ``should_stop``; a checkpoint is the last thing done.

    Lag 0: workers wait for the weights that their last unrolls made. Lag 1: they collect the next unrolls
    with the weights before, while the learner learns; before a checkpoint they wait, so that it holds
    a moment at which nothing is under way.
    """
    queue: BoundedQueue[U] = BoundedQueue(rollouts.n_actors)
    weights = learner.weights()
    rollouts.submit(weights, _progress(counters, config))
    while True:
        at = time.monotonic()
        collected = rollouts.gather(rollouts.n_actors)
        collect_s = time.monotonic() - at
        for item in collected:
            queue.put(item.unroll)
        before, counters = counters, _advance(counters, collected)

        done = counters.agent_steps >= config.total_steps
        # Asked once an iteration: a signal that comes later waits for the next.
        stop = should_stop()
        evaluate = _evaluation_due(before, counters, config)
        save = done or stop or evaluate or _passed(before, counters, config.checkpoint.every_steps)
        overlap = config.system.max_policy_lag > 0 and not save
        if overlap:
            rollouts.submit(weights, _progress(counters, config))

        at = time.monotonic()
        queue_depth = len(queue)
        report = learner.step(queue.take(rollouts.n_actors), _progress(before, config))
        weights = learner.weights()
        learn_s = time.monotonic() - at

        episodes = tuple(episode for item in collected for episode in item.episodes)
        observer.iterated(
            Iteration(
                counters,
                episodes,
                report,
                queue_depth,
                rollouts.restarts,
                collect_s,
                learn_s,
                _mean_seconds([item.seconds for item in collected]),
            )
        )
        evaluation = None
        if evaluate and not stop:
            evaluation = rollouts.evaluate(weights)
            observer.evaluated(counters, evaluation)
        if save:
            last = done or should_stop()
            observer.checkpoint(counters, learner.state(), rollouts.state(), evaluation, last=last)
            # A signal that came meanwhile finds everything saved.
            if last or should_stop():
                return "finished" if done else "stopped"
        if not overlap:
            rollouts.submit(weights, _progress(counters, config))


def make_limiter(config: RunConfig, plan: Plan) -> RateLimiter:
    """The run's limiter. In turn, the actors wait for whatever is due; beside the learner they may be two
    unrolls each ahead, which is the least with which none waits for another's."""
    ahead = 0 if plan.in_turn else 2 * plan.actors * plan.lanes * config.rollout.unroll_length
    ratio = config.replay.samples_per_insert
    # With two unrolls of one actor, something can be sampled.
    least = (plan.actors + 1) * plan.lanes * config.rollout.unroll_length
    return RateLimiter(ratio, max(config.replay.min_size, least), tolerance=ahead * ratio)


def train_replayed[W, U](
    rollouts: Rollouts[W, U],
    learner: ReplayLearnerPort[W, U],
    limiter: RateLimiter,
    config: RunConfig,
    counters: Counters,
    observer: Observer,
    should_stop: Callable[[], bool],
    version: int = 0,
) -> Outcome:
    """Run until ``config.total_steps`` or until ``should_stop``; a checkpoint is the last thing done.

    version: of the learner's weights now.

    Every worker makes unrolls with the newest weights there are, and every order to the learner is a number
    of updates; whichever side runs ahead of the replay ratio gets nothing to do. Before an evaluation or a
    checkpoint all that is under way is awaited, so that it holds a moment at which nothing is.
    """
    algo = config.algo
    assert isinstance(algo, ApexConfig)
    weights = learner.weights()
    since, lost = _Since(counters, version), 0.0
    while True:
        progress = _progress(counters, config)
        if limiter.may_insert():
            rollouts.submit(weights, progress)
        starving = learner.concurrent and not learner.in_flight and not limiter.filling
        at = time.monotonic()
        collected = rollouts.gather(1)
        gather_s = time.monotonic() - at
        counters = _take_in(collected, learner, limiter, since, counters)
        since.collect_s += gather_s
        since.learner_waits_s += gather_s if starving else 0.0
        while learner.free and (updates := limiter.batches_due(algo.batch, algo.publish_every)):
            learner.submit(updates, progress)
            limiter.sampled += updates * algo.batch

        held_back = not limiter.may_insert() and not rollouts.under_way
        at = time.monotonic()
        report = learner.poll(block=held_back)
        since.learn_s += time.monotonic() - at
        since.actors_wait_s += time.monotonic() - at if held_back and learner.concurrent else 0.0

        done = counters.agent_steps >= config.total_steps
        stop = should_stop()
        evaluate = _evaluation_due(since.counters, counters, config)
        save = done or stop or evaluate or _passed(since.counters, counters, config.checkpoint.every_steps)
        if save:
            counters = _take_in(rollouts.gather(rollouts.n_actors), learner, limiter, since, counters)
            done = counters.agent_steps >= config.total_steps
            evaluate = _evaluation_due(since.counters, counters, config)
        reports = [report] if report is not None else []
        while save and learner.in_flight:
            reports += [late for late in [learner.poll(block=True)] if late is not None]
        if not reports and not limiter.filling and not save:
            continue
        for report in reports:
            lost = _refill_if_lost(limiter, report, lost)
            observer.iterated(since.iteration(counters, report, limiter, rollouts.restarts))
            since = _Since(counters, report.version)
        if reports:
            weights = learner.weights()
        else:
            observer.iterated(since.iteration(counters, None, limiter, rollouts.restarts))
            since = _Since(counters, since.version)

        evaluation = None
        if evaluate and not stop:
            evaluation = rollouts.evaluate(weights)
            observer.evaluated(counters, evaluation)
        if save:
            last = done or should_stop()
            state = {**learner.state(), _LIMITER: _limiter_state(limiter)}
            observer.checkpoint(
                counters,
                state,
                rollouts.state(),
                evaluation,
                last=last,
                save_replay=learner.save_replay if config.replay.checkpoint else None,
            )
            # A signal that came meanwhile finds everything saved.
            if last or should_stop():
                return "finished" if done else "stopped"


_LIMITER = "limiter"


def _refill_if_lost(limiter: RateLimiter, report: StepReport, lost_before: float) -> float:
    """Where a shard's death left less than learning begins with, fill up first. All that was lost so far."""
    lost = report.metrics.get("replay_lost", 0.0)
    size = int(report.metrics["replay_size"])
    if lost > lost_before and size < limiter.min_size:
        limiter.restart(size)
    return lost


def _limiter_state(limiter: RateLimiter) -> F64:
    return np.array([limiter.inserted, limiter.sampled, limiter.samples_per_insert, limiter.min_size])


def restore_limiter(limiter: RateLimiter, learner_state: Arrays) -> None:
    """Go on with the ratio of a run whose replay is there again; another one is kept from here on."""
    inserted, sampled, *kind = learner_state[_LIMITER].tolist()
    if kind == [limiter.samples_per_insert, limiter.min_size]:
        limiter.inserted, limiter.sampled = int(inserted), int(sampled)
    else:
        limiter.inserted = min(int(inserted), limiter.min_size)


@dataclass
class _Since:
    """What came together since the last iteration. Waits are those that the limiter asked for."""

    counters: Counters
    version: int = 0
    episodes: list[EpisodeRecord] = field(default_factory=list)
    seconds: list[Mapping[str, float]] = field(default_factory=list)
    oldest_weights: int | None = None
    collect_s: float = 0.0
    learn_s: float = 0.0
    actors_wait_s: float = 0.0
    learner_waits_s: float = 0.0

    def add[U](self, item: Collected[U]) -> None:
        self.episodes += item.episodes
        self.seconds.append(item.seconds)
        oldest = item.weights_version if self.oldest_weights is None else self.oldest_weights
        self.oldest_weights = min(oldest, item.weights_version)

    def iteration(
        self, counters: Counters, report: StepReport | None, limiter: RateLimiter, restarts: int
    ) -> Iteration:
        """``report`` is None while the replay is filled: nothing has been learned."""
        report = report or StepReport(self.version, 0, {"replay_size": float(limiter.inserted)})
        lag = 0 if self.oldest_weights is None else max(0, report.version - self.oldest_weights)
        metrics = {
            **report.metrics,
            "policy_lag": float(lag),
            "replay_ratio": limiter.replay_ratio,
            "limiter_actors_wait_s": self.actors_wait_s,
            "limiter_learner_waits_s": self.learner_waits_s,
        }
        return Iteration(
            counters,
            tuple(self.episodes),
            replace(report, metrics=metrics),
            0,
            restarts,
            self.collect_s,
            self.learn_s,
            _mean_seconds(self.seconds),
        )


def _take_in[W, U](
    collected: list[Collected[U]],
    learner: ReplayLearnerPort[W, U],
    limiter: RateLimiter,
    since: _Since,
    counters: Counters,
) -> Counters:
    """Put what was collected into the replay and count it."""
    learner.add(collected)
    for item in collected:
        limiter.inserted += item.steps
        since.add(item)
    return replace(_advance(counters, collected), iterations=since.counters.iterations + 1)


def _progress(counters: Counters, config: RunConfig) -> float:
    return counters.agent_steps / config.total_steps


def _evaluation_due(before: Counters, after: Counters, config: RunConfig) -> bool:
    every = config.evaluation.every_steps
    return _passed(before, after, every) or (every > 0 and after.agent_steps >= config.total_steps)


def _advance[U](counters: Counters, collected: list[Collected[U]]) -> Counters:
    return replace(
        counters,
        agent_steps=counters.agent_steps + sum(item.steps for item in collected),
        iterations=counters.iterations + 1,
        episodes=counters.episodes + sum(len(item.episodes) for item in collected),
    )


def _mean_seconds(seconds: list[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for parts in seconds for name in parts})
    return {name: sum(parts.get(name, 0.0) for parts in seconds) / len(seconds) for name in names}


def _passed(before: Counters, after: Counters, every: int) -> bool:
    """Whether a multiple of ``every`` agent steps lies between the two."""
    return every > 0 and after.agent_steps // every > before.agent_steps // every
