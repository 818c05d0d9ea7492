"""A learner and the replay that it learns from: sample, update, write the priorities back."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from mario_dist.algos.apex import ApexConfig
from mario_dist.learner import ReplayLearner
from mario_dist.ops.schedules import linear
from mario_dist.replay import importance_weights
from mario_dist.types import F32, ReplayStats, StepReport, Transitions


class SampleSource(Protocol):
    """A replay as its learner sees it, here or on shards elsewhere."""

    def sample(self, count: int) -> Transitions | None:
        """None where all that there was is lost."""

    def update(self, batch: Transitions, error_B: F32) -> None:
        """Give the transitions of a batch their new absolute errors."""

    def stats(self) -> ReplayStats: ...

    def losses(self) -> Mapping[str, float]:
        """``replay_lost`` transitions with ``replay_shard_restarts`` shards; empty where none can die."""


class ReplayTrainer:
    """Updates one after the other, each on a fresh batch."""

    def __init__(self, learner: ReplayLearner, replay: SampleSource, config: ApexConfig) -> None:
        self._learner = learner
        self._replay = replay
        self._config = config

    def run(self, updates: int, progress: float) -> StepReport:
        """``updates`` updates; their report, with what the replay says of itself.

        They are fewer where the replay was lost meanwhile: its size is 0 then.
        """
        ages: list[float] = []
        waited_s, started = 0.0, time.perf_counter()
        exponent = linear(self._config.importance_exponent, progress)
        for _ in range(updates):
            at = time.perf_counter()
            batch = self._replay.sample(self._config.batch)
            waited_s += time.perf_counter() - at
            if batch is None:
                break
            weight_B = importance_weights(batch.probability_B, exponent)
            error_B = self._learner.update(batch, weight_B, progress)
            self._replay.update(batch, error_B)
            ages.append(float(batch.age_B.mean()))
        seconds = time.perf_counter() - started
        report, stats = self._learner.report(), self._replay.stats()
        spread = stats.priority_max / stats.priority_mean if stats.priority_mean else 1.0
        metrics = {
            "replay_size": float(stats.size),
            "replay_gib": stats.nbytes / 2**30,
            "sample_age": float(np.mean(ages)) if ages else 0.0,
            "priority_spread": spread,
            "updates_per_s": len(ages) / seconds,
            "sample_s": waited_s,
            **self._replay.losses(),
        }
        return replace(report, metrics={**report.metrics, **metrics})
