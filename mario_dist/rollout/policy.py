"""From what a network says to what an actor does."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mario_dist.nets import NetOut


class Act(NamedTuple):
    """What the lanes do: action int64 [N], and the log-probability float32 [N] with which they did it."""

    action_N: Tensor
    log_prob_N: Tensor


class Policy(Protocol):
    """``progress`` is the done part of the run, 0 to 1; randomness comes from ``generator`` alone."""

    def act(self, out: NetOut, progress: float, generator: torch.Generator, lanes: slice) -> Act:
        """``lanes``: which of the worker's these are."""


class SamplingPolicy:
    """Draws from the softmax of the logits."""

    def act(self, out: NetOut, progress: float, generator: torch.Generator, lanes: slice) -> Act:
        log_prob_NA = out.logits_BA.log_softmax(-1)
        action_N1 = torch.multinomial(log_prob_NA.exp(), 1, generator=generator)
        return Act(action_N1.squeeze(1), log_prob_NA.gather(1, action_N1).squeeze(1))


class EpsilonGreedy:
    """Takes the action of the largest logit, or with a lane's epsilon any action.

    start_N, end_N: float32 [N], the epsilons at the run's start and from ``share`` of it on, linear between.
    """

    def __init__(self, start_N: Tensor, end_N: Tensor, share: float) -> None:
        self._start_N, self._end_N, self._share = start_N, end_N, share

    def epsilon_N(self, progress: float) -> Tensor:
        done = min(max(progress / self._share, 0.0), 1.0)
        return torch.lerp(self._start_N, self._end_N, done)

    def act(self, out: NetOut, progress: float, generator: torch.Generator, lanes: slice) -> Act:
        n, n_actions = out.logits_BA.shape
        epsilon_N = self.epsilon_N(progress)[lanes]
        greedy_N = out.logits_BA.argmax(-1)
        any_N = torch.randint(n_actions, (n,), generator=generator)
        explores_N = torch.rand(n, generator=generator) < epsilon_N
        action_N = torch.where(explores_N, any_N, greedy_N)
        probability_N = epsilon_N / n_actions + (1.0 - epsilon_N) * (action_N == greedy_N)
        return Act(action_N, probability_N.log())
