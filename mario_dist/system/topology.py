"""The one picture of DESIGN.md as a function: rollouts -> feed -> learner -> weights -> rollouts.

The feed is a queue or a replay, and says who may go on; who waits for whom is nowhere else.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from mario_dist.config import RunConfig
from mario_dist.system.build import stop_protocol, training_protocol
from mario_dist.system.feed import Feed
from mario_dist.system.ports import Collected, LearnerPort, Rollouts
from mario_dist.types import Arrays, EpisodeRecord, EvalReport, StepReport

Outcome = Literal["finished", "stopped"]


@dataclass(frozen=True, slots=True)
class Counters:
    """How far a run is. ``agent_steps`` counts steps of all lanes."""

    agent_steps: int = 0
    iterations: int = 0
    episodes: int = 0


@dataclass(frozen=True, slots=True)
class Iteration:
    """What happened between two reports of the learner, for whoever watches. Seconds are wall-clock.

    collect_s, learn_s: in which the loop waited for the workers, and for the learner.
    worker_seconds: where the workers' time went (environment, inference), the mean over them.
    """

    counters: Counters
    episodes: tuple[EpisodeRecord, ...]
    report: StepReport
    queue_depth: int
    actors: int
    restarts: int
    collect_s: float
    learn_s: float
    worker_seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Recovery:
    """To which learner state a run goes back, and by which factor it learns more slowly from there on."""

    learner: Arrays
    lr_factor: float


Judge = Literal["eval", "stop"]
"""Which protocol an evaluation was by: that of the training's evaluations, or the one that may end it."""


class Observer(Protocol):
    """Who keeps what a run produces."""

    def iterated(self, iteration: Iteration) -> None: ...

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
    ) -> None:
        """last: nothing comes after it in this process. done: nor in a later one, as it is configured."""


def train[W, U](
    rollouts: Rollouts[W, U],
    learner: LearnerPort[W],
    feed: Feed[U],
    config: RunConfig,
    counters: Counters,
    observer: Observer,
    should_stop: Callable[[], bool],
    version: int = 0,
    recovery: Callable[[], Recovery | None] = lambda: None,
) -> Outcome:
    """Run until ``config.total_steps``, until ``config.stop`` holds or until ``should_stop``; a checkpoint is
    the last thing done.

    version: of the learner's weights now. recovery: asked after each iteration whether to go back to an
    earlier state of the learner; the counters go on.

    Idle workers make unrolls with the newest weights, and the learner gets orders, whenever the feed lets
    them; the loop then sleeps until either has something. Before an evaluation or a checkpoint all that is
    under way is awaited and learned, so that it holds a moment at which nothing is.
    """
    weights = learner.weights()
    since = _Since(counters, version)
    while True:
        progress = _progress(counters, config)
        if feed.may_collect(learner.in_flight):
            rollouts.submit(weights, progress)
        feed.resize(max(rollouts.n_actors, rollouts.under_way))
        _give_orders(learner, feed, since.version, progress, under_way=rollouts.under_way)

        starving = learner.concurrent and not learner.in_flight and not feed.filling
        at = time.monotonic()
        collected = rollouts.gather(feed.least, unless=learner.next_report)
        since.collect_s += time.monotonic() - at
        since.learner_waits_s += time.monotonic() - at if starving else 0.0
        counters = _take_in(collected, feed, since, counters)
        _give_orders(learner, feed, since.version, progress, under_way=rollouts.under_way)

        held_back = not rollouts.under_way and not feed.may_collect(learner.in_flight)
        at = time.monotonic()
        report = learner.poll(block=held_back)
        since.learn_s += time.monotonic() - at
        since.actors_wait_s += time.monotonic() - at if held_back and learner.concurrent else 0.0
        reports = [] if report is None else [report]

        done = counters.agent_steps >= config.total_steps
        # Asked once an iteration: a signal that comes later waits for the next.
        stop = should_stop()
        evaluate = _evaluation_due(since.counters, counters, config)
        save = done or stop or evaluate or _passed(since.counters, counters, config.checkpoint.every_steps)
        if save:
            counters = _take_in(rollouts.gather(rollouts.under_way), feed, since, counters)
            done = counters.agent_steps >= config.total_steps
            evaluate = _evaluation_due(since.counters, counters, config)
            at = time.monotonic()
            reports += _drain(learner, feed, reports, since.version, progress)
            since.learn_s += time.monotonic() - at
        if not reports and not feed.filling and not save:
            continue
        weights = learner.weights() if reports else weights
        # While a replay is filled, nothing is learned.
        for one in reports or [StepReport(since.version, 0, feed.metrics())]:
            learned = feed.learned(one) if reports else one
            observer.iterated(since.iteration(counters, learned, rollouts, concurrent=learner.concurrent))
            since = _Since(counters, one.version)

        if (back := recovery()) is not None:
            late = [feed.learned(one) for one in _drain(learner, feed, reports, since.version, progress)]
            learner.recover(back.learner, back.lr_factor)
            since.version = 1 + max([since.version, *(one.version for one in late)])
            weights = learner.weights()

        evaluation = None
        if evaluate and not stop:
            evaluation = rollouts.evaluate(weights, training_protocol(config))
            observer.evaluated(counters, evaluation, "eval")
            target = config.stop.clear_rate
            # A few episodes that leave it possible are worth the many that decide it.
            if target is not None and evaluation.clear_rate_ci[1] >= target:
                evaluation = rollouts.evaluate(weights, stop_protocol(config))
                observer.evaluated(counters, evaluation, "stop")
                done = done or evaluation.clear_rate >= target
        if save:
            last = done or should_stop()
            observer.checkpoint(
                counters,
                {**learner.state(), **feed.state()},
                rollouts.state(),
                evaluation,
                last=last,
                done=done,
                save_replay=feed.save_replay,
            )
            # A signal that came meanwhile finds everything saved.
            if last or should_stop():
                return "finished" if done else "stopped"


def _give_orders[W, U](
    learner: LearnerPort[W],
    feed: Feed[U],
    version: int,
    progress: float,
    *,
    under_way: int = 0,
    draining: bool = False,
) -> None:
    """As many as the learner takes and the feed has; ``version`` is the newest that was reported."""
    while learner.free:
        order = feed.order(version + learner.in_flight, under_way=under_way, draining=draining)
        if order is None:
            return
        learner.submit(order, progress)


def _drain[W, U](
    learner: LearnerPort[W], feed: Feed[U], reports: list[StepReport], version: int, progress: float
) -> list[StepReport]:
    """The reports of all that the learner has and the feed still gives."""
    late: list[StepReport] = []
    while True:
        version = max([version, *(report.version for report in [*reports, *late])])
        _give_orders(learner, feed, version, progress, draining=True)
        report = learner.poll(block=True)
        if report is None:
            return late
        late.append(report)


@dataclass
class _Since:
    """What came together since the last iteration. Waits are those that the feed asked for."""

    counters: Counters
    version: int = 0
    episodes: list[EpisodeRecord] = field(default_factory=list)
    seconds: list[Mapping[str, float]] = field(default_factory=list)
    oldest_weights: int | None = None
    queue_depth: int = 0
    collect_s: float = 0.0
    learn_s: float = 0.0
    actors_wait_s: float = 0.0
    learner_waits_s: float = 0.0

    def add[U](self, item: Collected[U]) -> None:
        self.episodes += item.episodes
        self.seconds.append(item.seconds)
        oldest = item.weights_version if self.oldest_weights is None else self.oldest_weights
        self.oldest_weights = min(oldest, item.weights_version)

    def iteration[W, U](
        self, counters: Counters, report: StepReport, rollouts: Rollouts[W, U], *, concurrent: bool
    ) -> Iteration:
        lag = 0 if self.oldest_weights is None else max(0, report.version - self.oldest_weights)
        metrics = {
            # A learner from a queue knows the lag of its batch itself; of a replay's samples nobody asks.
            "policy_lag": float(lag),
            **report.metrics,
        }
        if concurrent:
            metrics |= {"actors_wait_s": self.actors_wait_s, "learner_waits_s": self.learner_waits_s}
        return Iteration(
            counters,
            tuple(self.episodes),
            replace(report, metrics=metrics),
            self.queue_depth,
            rollouts.n_actors,
            rollouts.restarts,
            self.collect_s,
            self.learn_s,
            _mean_seconds(self.seconds),
        )


def _take_in[U](collected: list[Collected[U]], feed: Feed[U], since: _Since, counters: Counters) -> Counters:
    """Put what was collected into the feed and count it."""
    feed.put(collected)
    for item in collected:
        since.add(item)
    since.queue_depth = max(since.queue_depth, feed.depth)
    return Counters(
        agent_steps=counters.agent_steps + sum(item.steps for item in collected),
        iterations=since.counters.iterations + 1,
        episodes=counters.episodes + sum(len(item.episodes) for item in collected),
    )


def _progress(counters: Counters, config: RunConfig) -> float:
    return counters.agent_steps / config.total_steps


def _evaluation_due(before: Counters, after: Counters, config: RunConfig) -> bool:
    every = config.evaluation.every_steps
    return _passed(before, after, every) or (every > 0 and after.agent_steps >= config.total_steps)


def _mean_seconds(seconds: list[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for parts in seconds for name in parts})
    return {name: sum(parts.get(name, 0.0) for parts in seconds) / len(seconds) for name in names}


def _passed(before: Counters, after: Counters, every: int) -> bool:
    """Whether a multiple of ``every`` agent steps lies between the two."""
    return every > 0 and after.agent_steps // every > before.agent_steps // every
