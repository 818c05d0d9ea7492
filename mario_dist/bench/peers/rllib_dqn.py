"""RLlib's DQN on its new API stack, with its prioritised replay: dueling, double, n-step.

Its own convolutional network is taken, on pictures as float32 [H, W, K]: it fails on uint8 ones. It pads
"same", so its dense layer sees 2.5 times the features of ours.

Run as ``python -m mario_dist.bench.peers.rllib_dqn '<DQNSettings as JSON>'``.
"""

import os
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.dqn import calculate_rr_weights
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from mario_dist.bench.peers.gym_stack import make_env
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.rllib import ENV, Arrangement, detail, fastest_arrangement, gpus, iterate, running
from mario_dist.bench.peers.settings import DQNSettings, PeerResult, summarise
from mario_dist.types import U8


class FloatPicture(gym.ObservationWrapper[NDArray[np.float32], int, U8]):
    """uint8 [K, H, W] as float32 [H, W, K] in [0, 1]."""

    def __init__(self, env: gym.Env[U8, int]) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        assert shape is not None
        self.observation_space = gym.spaces.Box(0.0, 1.0, (*shape[1:], shape[0]), np.float32)

    def observation(self, observation: U8) -> NDArray[np.float32]:
        return np.moveaxis(observation, 0, -1).astype(np.float32) / np.float32(255.0)


def measure(settings: DQNSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up are not in the figures."""
    arrangement = fastest_arrangement(settings.n_envs, os.cpu_count() or 1)
    with running(settings, arrangement, _config, _make_env) as algorithm:
        _check_ratio(algorithm, settings)
        # One call of train() collects and learns for at least a turn.
        calls = settings.warmup // settings.turn + settings.iterations
        iterations = iterate(algorithm, calls)[-settings.iterations :]
    return summarise(iterations, detail(settings, arrangement), settings.updates)


def _check_ratio(algorithm: Algorithm, settings: DQNSettings) -> None:
    """Raises ``ValueError`` where RLlib would not learn as often as everybody else."""
    assert algorithm.config is not None
    rounds, updates = calculate_rr_weights(algorithm.config)
    if (rounds, updates) != (1, settings.updates):
        raise ValueError(f"RLlib makes {updates} updates in {rounds} turns, not {settings.updates} in one")


def _make_env(level: str, _context: dict[str, Any]) -> FloatPicture:
    return FloatPicture(make_env(level))


def _config(settings: DQNSettings, arrangement: Arrangement) -> DQNConfig:
    return (
        DQNConfig()  # type: ignore[no-untyped-call]  # ray is typed in part only
        .environment(ENV)
        .env_runners(
            num_env_runners=arrangement.runners,
            num_envs_per_env_runner=arrangement.envs_per_runner,
            gym_env_vectorize_mode=arrangement.vectorize,
            rollout_fragment_length=settings.n_steps,
            sample_timeout_s=600.0,
        )
        .learners(num_learners=0, num_gpus_per_learner=gpus(settings))
        .rl_module(
            model_config=DefaultModelConfig(
                conv_filters=[(32, 8, 4), (64, 4, 2), (64, 3, 1)],
                conv_activation="relu",
                head_fcnet_hiddens=[512],
                head_fcnet_activation="relu",
            )
        )
        .training(
            gamma=settings.gamma,
            lr=settings.lr,
            train_batch_size_per_learner=settings.batch,
            # RLlib reckons as if its own process collected too.
            training_intensity=settings.replay_ratio * arrangement.runners / (arrangement.runners + 1),
            num_steps_sampled_before_learning_starts=settings.warmup // 2,
            target_network_update_freq=settings.target_every * settings.batch,
            n_step=settings.n_step,
            double_q=True,
            dueling=True,
            replay_buffer_config={
                "type": "PrioritizedEpisodeReplayBuffer",
                "capacity": settings.capacity,
                "alpha": 0.6,
                "beta": 0.4,
            },
        )
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=settings.turn)
        .debugging(seed=settings.seed, log_level="ERROR")
    )


if __name__ == "__main__":
    child_main(measure, DQNSettings)
