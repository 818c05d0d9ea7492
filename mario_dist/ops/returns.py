"""Returns and advantages over time-major tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


def gae(
    reward_TN: Tensor, value_TN: Tensor, next_value_TN: Tensor, terminated_TN: Tensor, end_TN: Tensor, *,
    gamma: float, lam: float,
) -> Tensor:  # fmt: skip
    """Generalised advantage estimation (Schulman et al. 2016, equation 16): float32 [T, N].

    ``next_value_TN[t]`` is the value of the observation that step t really led to: the next step's, the
    bootstrap's at t = T - 1, or the true final frame's where the episode was truncated at t; what it says
    where ``terminated_TN`` is ignored. ``end_TN`` is terminated or truncated: nothing flows back over it.
    """
    assert reward_TN.shape == value_TN.shape == next_value_TN.shape == terminated_TN.shape == end_TN.shape
    alive_TN = (~terminated_TN).to(reward_TN.dtype)
    goes_on_TN = (~end_TN).to(reward_TN.dtype)
    delta_TN = reward_TN + gamma * next_value_TN * alive_TN - value_TN
    advantage_TN = torch.empty_like(delta_TN)
    carry_N = torch.zeros_like(delta_TN[0])
    for t in reversed(range(delta_TN.shape[0])):
        carry_N = delta_TN[t] + gamma * lam * goes_on_TN[t] * carry_N
        advantage_TN[t] = carry_N
    return advantage_TN


def n_step_return(
    reward_TN: Tensor, value_TN: Tensor, terminated_TN: Tensor, truncated_TN: Tensor,
    final_value_TN: Tensor, *, gamma: float, n_step: int,
) -> Tensor:  # fmt: skip
    """sum_j gamma^j r_{t+j} + gamma^m v(s_{t+m}) for the first T - n steps: float32 [T - n, N].

    m = n, or fewer where the episode ends before. ``value_TN[t]`` is the value of the observation of step t,
    ``final_value_TN[t]`` that of the true final frame where step t was truncated; a terminal one's is 0.
    """
    rows = len(reward_TN) - n_step
    total_TN = torch.zeros_like(reward_TN[:rows])
    alive_TN = torch.ones_like(total_TN)
    for j in range(n_step):
        at = slice(j, j + rows)
        total_TN += gamma**j * alive_TN * reward_TN[at]
        total_TN += gamma ** (j + 1) * alive_TN * truncated_TN[at] * final_value_TN[at]
        alive_TN = alive_TN * ~(terminated_TN[at] | truncated_TN[at])
    return total_TN + gamma**n_step * alive_TN * value_TN[n_step:]


class VTrace(NamedTuple):
    """target: v_s, what the value is drawn to; advantage: r + gamma v_{s+1} - V(x_s), by which the policy is
    changed once it is weighed with the importance ratio. Both float32 [T, N].
    """

    target_TN: Tensor
    advantage_TN: Tensor


def vtrace(
    log_ratio_TN: Tensor, reward_TN: Tensor, value_TN: Tensor, next_value_TN: Tensor,
    terminated_TN: Tensor, end_TN: Tensor, *,
    gamma: float, lam: float = 1.0, rho_clip: float = 1.0, c_clip: float = 1.0,
) -> VTrace:  # fmt: skip
    """V-trace (Espeholt et al. 2018, equation 1; lambda as in its remark 2).

    ``log_ratio_TN`` is log pi(a|x) - log mu(a|x), of the learner's policy over the behaviour's. The values
    are the learner's; ``next_value_TN``, ``terminated_TN`` and ``end_TN`` are as in ``gae``. On-policy and
    with lambda 1 the target is the n-step return to the end of the episode or the unroll.
    """
    assert log_ratio_TN.shape == reward_TN.shape == value_TN.shape == next_value_TN.shape
    alive_TN = (~terminated_TN).to(reward_TN.dtype)
    goes_on_TN = (~end_TN).to(reward_TN.dtype)
    ratio_TN = log_ratio_TN.exp()
    rho_TN, c_TN = ratio_TN.clamp(max=rho_clip), lam * ratio_TN.clamp(max=c_clip)
    delta_TN = rho_TN * (reward_TN + gamma * next_value_TN * alive_TN - value_TN)
    correction_TN = torch.empty_like(delta_TN)  # v_s - V(x_s)
    next_correction_TN = torch.zeros_like(delta_TN)  # v_{s+1} - V(x_{s+1}), where the unroll has that step
    carry_N = torch.zeros_like(delta_TN[0])
    for t in reversed(range(len(delta_TN))):
        next_correction_TN[t] = goes_on_TN[t] * carry_N
        carry_N = delta_TN[t] + gamma * c_TN[t] * next_correction_TN[t]
        correction_TN[t] = carry_N
    next_target_TN = next_value_TN * alive_TN + next_correction_TN
    return VTrace(value_TN + correction_TN, reward_TN + gamma * next_target_TN - value_TN)


def explained_variance(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - predicted) / Var(target): 1 is perfect, nan without variance. A scalar."""
    variance = target.var()
    share = 1 - (target - predicted).var() / variance
    return torch.where(variance > 0, share, torch.nan)
