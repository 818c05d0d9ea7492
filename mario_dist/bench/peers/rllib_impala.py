"""RLlib's IMPALA on its new API stack, the arrangement of env runners that is fastest here.

The runners sample while the algorithm's own process learns; nothing else lies between the two, no aggregator
actors: on the CPU, learning takes less than a third of the time.

Run as ``python -m mario_dist.bench.peers.rllib_impala '<ImpalaSettings as JSON>'``.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from mario_dist.bench.peers.gym_stack import make_env
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.rllib import ENV, Arrangement, detail, fastest_arrangement, gpus, running
from mario_dist.bench.peers.rllib_net import NatureModule
from mario_dist.bench.peers.settings import ImpalaSettings, Mark, PeerResult, measured, summarise, windows
from mario_dist.types import U8

_POLL_S = 0.02
"""For how long the algorithm's process waits for samples. RLlib's own 0 makes it ask without a pause, on a
core that the env runners need: on 2 cores beside another run 50 agent steps/s, with this 147."""


def measure(settings: ImpalaSettings, arrangement: Arrangement | None = None) -> PeerResult:
    """Train and time. Start-up and the warm-up are not in the figures."""
    arrangement = arrangement or fastest_arrangement(settings.n_envs, os.cpu_count() or 1)
    marks: list[Mark] = []
    with running(settings, arrangement, _config, _make_env) as algorithm:
        learners: Any = algorithm.learner_group
        learners.update = _marked(learners.update, marks)
        while len(pairs := windows(marks, settings)) < settings.iterations:
            algorithm.train()  # type: ignore[no-untyped-call]  # ray is typed in part only
    return summarise(measured(pairs), detail(settings, arrangement))


def _marked(update: Callable[..., Any], marks: list[Mark]) -> Callable[..., Any]:
    """``update`` of a learner in this process, which ends with the gradient step, and a mark after it.

    The steps that RLlib says it trained on have one made up for each piece of an episode, which its
    connector appends for the bootstrap; here they do not count.
    """

    def marked(*, training_data: TrainingData, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = update(training_data=training_data, **kwargs)
        end = time.perf_counter()
        steps = sum(len(episode) - 1 for episode in training_data.episodes or [])
        before = marks[-1] if marks else Mark(end, 0, 0.0)
        marks.append(Mark(end, before.agent_steps + steps, before.learn_s + end - start))
        return result

    return marked


def _make_env(level: str, _context: dict[str, Any]) -> gym.Env[U8, int]:
    return make_env(level)


def _config(settings: ImpalaSettings, arrangement: Arrangement) -> IMPALAConfig:
    return (
        IMPALAConfig()  # type: ignore[no-untyped-call]  # ray is typed in part only
        .environment(ENV)
        .env_runners(
            num_env_runners=arrangement.runners,
            num_envs_per_env_runner=arrangement.envs_per_runner,
            gym_env_vectorize_mode=arrangement.vectorize,
            rollout_fragment_length=settings.n_steps,
            sample_timeout_s=600.0,
        )
        # One learner, in the algorithm's own process: no copy of the batch to another.
        .learners(num_learners=0, num_gpus_per_learner=gpus(settings))
        .rl_module(rl_module_spec=RLModuleSpec(module_class=NatureModule))
        .training(
            gamma=settings.gamma,
            lr=settings.lr,
            entropy_coeff=settings.entropy_coef,
            vf_loss_coeff=settings.value_coef,
            vtrace_clip_rho_threshold=1.0,
            vtrace_clip_pg_rho_threshold=1.0,
            train_batch_size_per_learner=settings.turn,
            grad_clip=settings.max_grad_norm,
            grad_clip_by="global_norm",
            timeout_s_sampler_manager=_POLL_S,
        )
        .reporting(min_time_s_per_iteration=1)
        .debugging(seed=settings.seed, log_level="ERROR")
    )


if __name__ == "__main__":
    child_main(measure, ImpalaSettings)
