"""Losses as pure functions of tensors: a scalar and what is worth logging."""

import torch
from torch import Tensor
from torch.nn import functional as F


def clipped_surrogate(log_ratio_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """PPO's clipped policy objective as a loss (Schulman et al. 2017, equation 7): a scalar."""
    ratio_B = log_ratio_B.exp()
    return -torch.min(ratio_B * advantage_B, ratio_B.clamp(1 - clip, 1 + clip) * advantage_B).mean()


def value_loss(value_B: Tensor, old_value_B: Tensor, return_B: Tensor, clip: float | None) -> Tensor:
    """Mean squared error of the value; with ``clip``, of the value kept within it of the old one."""
    if clip is not None:
        value_B = old_value_B + (value_B - old_value_B).clamp(-clip, clip)
    return F.mse_loss(value_B, return_B)


def entropy(log_prob_BA: Tensor) -> Tensor:
    """Mean entropy, in nats, of categorical distributions given by normalised log-probabilities [B, A]."""
    return -(log_prob_BA.exp() * log_prob_BA).sum(-1).mean()


def approx_kl(log_ratio_B: Tensor) -> Tensor:
    """KL(old || new) by Schulman's k3 estimator, (r - 1) - log r: low variance, never negative."""
    return (log_ratio_B.exp() - 1 - log_ratio_B).mean()


def td_error(q_BA: Tensor, action_B: Tensor, target_B: Tensor) -> Tensor:
    """target - Q(s, a): float32 [B]. The target carries no gradient."""
    return target_B - q_BA.gather(1, action_B[:, None]).squeeze(1)


def bootstrap(next_q_BA: Tensor, chooser_q_BA: Tensor) -> Tensor:
    """The value of s': what ``next_q`` says of the action that ``chooser_q`` likes best: float32 [B].

    Both from the target network is DQN (Mnih et al. 2015); chosen by the online network, double DQN
    (van Hasselt et al. 2016, equation 4).
    """
    return next_q_BA.gather(1, chooser_q_BA.argmax(-1, keepdim=True)).squeeze(1)


def huber(error_B: Tensor, delta: float) -> Tensor:
    """Huber's loss of each error: quadratic within ``delta``, linear beyond: float32 [B]."""
    return F.huber_loss(error_B, torch.zeros_like(error_B), delta=delta, reduction="none")
