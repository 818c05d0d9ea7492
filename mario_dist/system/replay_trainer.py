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

    def sample(self, count: int) -> Transitions: ...

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
        """``updates`` updates; their report, with what the replay says of itself."""
        age, waited_s, started = 0.0, 0.0, time.perf_counter()
        exponent = linear(self._config.importance_exponent, progress)
        for _ in range(updates):
            at = time.perf_counter()
            batch = self._replay.sample(self._config.batch)
            waited_s += time.perf_counter() - at
            weight_B = importance_weights(batch.probability_B, exponent)
            error_B = self._learner.update(batch, weight_B, progress)
            self._replay.update(batch, error_B)
            age += float(np.mean(batch.age_B)) / updates
        seconds = time.perf_counter() - started
        report, stats = self._learner.report(), self._replay.stats()
        spread = stats.priority_max / stats.priority_mean if stats.priority_mean else 1.0
        metrics = {
            "replay_size": float(stats.size),
            "replay_gib": stats.nbytes / 2**30,
            "sample_age": age,
            "priority_spread": spread,
            "updates_per_s": updates / seconds,
            "sample_s": waited_s,
            **self._replay.losses(),
        }
        return replace(report, metrics={**report.metrics, **metrics})
