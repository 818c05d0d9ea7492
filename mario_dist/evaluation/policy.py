"""A policy playing: the newest frames in, actions out."""

import torch
from torch import Tensor

from mario_dist.env import VectorEnv
from mario_dist.nets import Network
from mario_dist.rollout import FrameStack
from mario_dist.types import EnvStep


class Player:
    """Plays ``network`` in all lanes of ``env``, from their reset on.

    greedy: the likeliest action instead of a sample; samples are drawn from ``seed``. A network whose
    logits are no distribution is always played so.
    """

    def __init__(self, network: Network, env: VectorEnv, *, seed: int, greedy: bool) -> None:
        self._network = network
        self._env = env
        self._greedy = greedy or not network.stochastic
        self._device = next(network.parameters()).device
        self._generator = torch.Generator().manual_seed(seed)
        self._stack = FrameStack(env.spec.frame_stack)
        self._stack.start(env.reset())

    def step(self) -> EnvStep:
        """One agent step in every lane."""
        step = self._env.step(self._act().numpy())
        self._stack.push(step.frame_NHW, step.terminated_N | step.truncated_N)
        return step

    @torch.no_grad()
    def _act(self) -> Tensor:
        """int64 [N]"""
        logits_NA: Tensor = self._network(
            torch.from_numpy(self._stack.stack_NKHW()).to(self._device)
        ).logits_BA.cpu()
        if self._greedy:
            return torch.argmax(logits_NA, dim=-1)
        return torch.multinomial(torch.softmax(logits_NA, dim=-1), 1, generator=self._generator)[:, 0]
