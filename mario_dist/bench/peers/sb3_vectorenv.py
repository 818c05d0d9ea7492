"""Stable-Baselines3's PPO driven by our ``VectorEnv``: its training loop, our emulator.

Beside ``sb3`` it says what the emulator alone gives; beside ours, what the training loop does. Run as
``python -m mario_dist.bench.peers.sb3_vectorenv '<PeerSettings as JSON>'``.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.sb3 import Threads, train
from mario_dist.bench.peers.settings import PeerResult, PeerSettings, env_config
from mario_dist.env import MarioVectorEnv, VectorEnv
from mario_dist.rollout import FrameStack
from mario_dist.types import U8


class StackedVecEnv(VecEnv):
    """A ``VectorEnv`` as SB3 knows them; observations are uint8 [N, K, H, W]."""

    def __init__(self, env: VectorEnv) -> None:
        spec = env.spec
        shape = (spec.frame_stack, *spec.frame_shape)
        super().__init__(
            env.n_lanes, gym.spaces.Box(0, 255, shape, np.uint8), gym.spaces.Discrete(spec.n_actions)
        )
        self._env = env
        self._stack = FrameStack(spec.frame_stack)
        self._action_N: NDArray[np.int64] = np.zeros(env.n_lanes, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        self._stack.start(self._env.reset())
        return self._stack.stack_NKHW()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._action_N = actions

    def step_wait(self) -> VecEnvStepReturn:
        step = self._env.step(self._action_N)
        done_N = step.terminated_N | step.truncated_N
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, lane in enumerate(step.final_lane_F):
            final = np.concatenate([self._stack.frames_KNHW[1:, lane], step.final_frame_FHW[row : row + 1]])
            infos[lane] = {
                "terminal_observation": final,
                "TimeLimit.truncated": bool(step.truncated_N[lane]),
            }
        self._stack.push(step.frame_NHW, done_N)
        observation_NKHW: U8 = self._stack.stack_NKHW()
        return observation_NKHW, step.reward_N, done_N, infos

    def close(self) -> None:
        self._env.close()

    # What SB3 asks of Gymnasium environments, of which there are none here. The two that raise are abstract
    # in its base class, and nothing that is measured calls them.

    def get_attr(self, attr_name: str, indices: object = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: object = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: object = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: object = None
    ) -> list[bool]:
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [None] * self.num_envs


def measure(settings: PeerSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up iterations are not in the figures."""
    cores = settings.torch_threads or torch.get_num_threads()
    env = MarioVectorEnv(
        env_config(settings), settings.n_envs, (settings.seed,), threads=torch.get_num_threads()
    )
    return train(settings, StackedVecEnv(env), f"our VectorEnv x {settings.n_envs}", Threads(cores, cores))


if __name__ == "__main__":
    child_main(measure, PeerSettings)
