"""Ape-X's learner on Ray: an actor that draws from the shards."""

from collections.abc import Sequence
from typing import Any

import ray

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.system.build import make_replay_learner
from mario_dist.system.plan import Plan
from mario_dist.system.ray import RayLearner, learner_options
from mario_dist.system.ray_shards import RayReplay, RayShards
from mario_dist.system.replay_trainer import ReplayTrainer
from mario_dist.types import Arrays, StepReport, Weights


class ReplayLearnerActor:
    """A thin shell around ``ReplayTrainer``."""

    def __init__(self, config: RunConfig, plan: Plan, state: Arrays | None, shards: Sequence[Any]) -> None:
        assert isinstance(config.algo, ApexConfig)
        self._learner = make_replay_learner(config, min(plan.learner_threads, machine.cores()))
        if state is not None:
            self._learner.restore(state)
        replay = RayReplay(shards, config.algo.batch, config.replay.prefetch, config.seed)
        self._trainer = ReplayTrainer(self._learner, replay, config.algo)

    def run(self, progress: float, updates: int) -> tuple[StepReport, Weights]:
        return self._trainer.run(updates, progress), self._learner.weights()

    def weights(self) -> Weights:
        return self._learner.weights()

    def state(self) -> Arrays:
        return self._learner.state()

    def recover(self, state: Arrays, lr_factor: float) -> None:
        self._learner.recover(state, lr_factor)


def ray_replay_learner(
    config: RunConfig, plan: Plan, state: Arrays | None, shards: RayShards, *, gpu: bool
) -> RayLearner:
    """A learner that draws from ``shards``."""
    actor_class: Any = ray.remote(**learner_options(config, plan, gpu=gpu))(ReplayLearnerActor)
    return RayLearner(actor_class.remote(config, plan, state, shards.handles))
