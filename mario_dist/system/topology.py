"""The one picture of DESIGN.md as a function: rollouts -> queue -> learner -> weights -> rollouts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from mario_dist.config import RunConfig
from mario_dist.replay import BoundedQueue
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
    rollouts.submit(weights)
    while True:
        at = time.monotonic()
        collected = rollouts.gather()
        collect_s = time.monotonic() - at
        for item in collected:
            queue.put(item.unroll)
        before, counters = counters, _advance(counters, collected)

        done = counters.agent_steps >= config.total_steps
        # Asked once an iteration: a signal that comes later waits for the next.
        stop = should_stop()
        evaluate = _passed(before, counters, config.evaluation.every_steps) or (
            done and config.evaluation.every_steps > 0
        )
        save = done or stop or evaluate or _passed(before, counters, config.checkpoint.every_steps)
        overlap = config.system.max_policy_lag > 0 and not save
        if overlap:
            rollouts.submit(weights)

        at = time.monotonic()
        queue_depth = len(queue)
        progress = before.agent_steps / config.total_steps
        report = learner.step(queue.take(rollouts.n_actors), progress)
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
                _mean_seconds(collected),
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
            rollouts.submit(weights)


def _advance[U](counters: Counters, collected: list[Collected[U]]) -> Counters:
    return replace(
        counters,
        agent_steps=counters.agent_steps + sum(item.steps for item in collected),
        iterations=counters.iterations + 1,
        episodes=counters.episodes + sum(len(item.episodes) for item in collected),
    )


def _mean_seconds[U](collected: list[Collected[U]]) -> dict[str, float]:
    names = {name for item in collected for name in item.seconds}
    return {name: sum(i.seconds.get(name, 0.0) for i in collected) / len(collected) for name in sorted(names)}


def _passed(before: Counters, after: Counters, every: int) -> bool:
    """Whether a multiple of ``every`` agent steps lies between the two."""
    return every > 0 and after.agent_steps // every > before.agent_steps // every
