"""A policy playing: the newest frames in, actions out."""

import numpy as np
import torch

from mario_dist.env import VectorEnv
from mario_dist.nets import Network
from mario_dist.rollout import FrameStack
from mario_dist.types import F32, I64, U8, EnvStep


class Player:
    """Plays ``network`` in all lanes of ``env``, from their reset on.

    greedy: the likeliest action instead of a sample; samples are drawn from ``seed``. A network whose
    logits are no distribution is always played so.

    action_N, value_N: int64 and float32 [N], what it asked for in the newest step and the network's value of
    what it saw then; whoever watches the frames of a step finds that step's.
    """

    def __init__(self, network: Network, env: VectorEnv, *, seed: int, greedy: bool) -> None:
        self._network = network
        self._env = env
        self._greedy = greedy or not network.stochastic
        self._device = next(network.parameters()).device
        self._generator = torch.Generator().manual_seed(seed)
        self._stack = FrameStack(env.spec.frame_stack)
        self._stack.start(env.reset())
        self.action_N: I64 = np.zeros(env.n_lanes, dtype=np.int64)
        self.value_N: F32 = np.zeros(env.n_lanes, dtype=np.float32)

    @property
    def value_name(self) -> str:
        """What ``value_N`` is, for people."""
        return "value" if self._network.stochastic else "max Q"

    def stack_NKHW(self) -> U8:
        """A copy of what it sees now: uint8 [N, K, H, W]."""
        return self._stack.stack_NKHW()

    def step(self) -> EnvStep:
        """One agent step in every lane."""
        self._act()
        step = self._env.step(self.action_N)
        self._stack.push(step.frame_NHW, step.terminated_N | step.truncated_N)
        return step

    @torch.no_grad()
    def _act(self) -> None:
        out = self._network(torch.from_numpy(self._stack.stack_NKHW()).to(self._device))
        logits_NA = out.logits_BA.cpu()
        if self._greedy:
            action_N = torch.argmax(logits_NA, dim=-1)
        else:
            action_N = torch.multinomial(torch.softmax(logits_NA, dim=-1), 1, generator=self._generator)[:, 0]
        self.action_N = action_N.numpy()
        self.value_N = out.value_B.cpu().numpy()
