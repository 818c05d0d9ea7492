"""IMPALA (Espeholt et al. 2018): actor-critic on unrolls that older policies made, corrected by V-trace.

With ``clip`` set the policy's objective is PPO's clipped surrogate on V-trace's advantages: APPO, as RLlib
names it (the idea is IMPACT's; Luo et al. 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mario_dist.algos.api import Batch, LossOut, next_values
from mario_dist.nets.network import ActorCritic
from mario_dist.ops.losses import approx_kl, clipped_surrogate, entropy, value_loss
from mario_dist.ops.returns import explained_variance, vtrace
from mario_dist.ops.schedules import linear


@dataclass(frozen=True, slots=True)
class ImpalaConfig:
    """IMPALA's settings. A pair ``(start, end)`` is a linear schedule over the run's total steps.

    vtrace_lambda, rho_clip, c_clip: of ``ops.returns.vtrace``. clip: the surrogate's clip range, None for
    the plain policy gradient.
    batch_unrolls: unrolls in a batch, of whichever actors they are; 0 for half as many as there are actors.
    minibatch: samples per gradient step, in whole lanes; 0 for the whole batch at once.
    reuse: how often a batch is learned from on average; reuse_buffer: newest batches that are drawn from.
    optimiser_eps: the paper's RMSProp has 0.1, Adam wants less.
    """

    replayed: ClassVar[bool] = False
    usual_lag: ClassVar[int] = 16
    bears_lag: ClassVar[int | None] = None

    name: Literal["impala"] = "impala"
    gamma: float = 0.99
    vtrace_lambda: float = 1.0
    rho_clip: float = 1.0
    c_clip: float = 1.0
    clip: float | None = None
    value_coef: float = 0.5
    entropy_coef: tuple[float, float] = (0.01, 0.01)
    normalise_advantages: bool = False
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    lr: tuple[float, float] = (6e-4, 0.0)
    optimiser_eps: float = 0.1
    max_grad_norm: float = 40.0
    batch_unrolls: int = 0
    minibatch: int = 0
    reuse: int = 1
    reuse_buffer: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0 or not 0.0 <= self.vtrace_lambda <= 1.0:
            raise ValueError("gamma and vtrace_lambda must be in [0, 1]")
        if min(self.rho_clip, self.c_clip) <= 0.0 or (self.clip is not None and self.clip <= 0.0):
            raise ValueError("rho_clip, c_clip and clip must be positive")
        if min(self.max_grad_norm, self.optimiser_eps) <= 0.0 or min(self.lr) < 0.0:
            raise ValueError("max_grad_norm and optimiser_eps must be positive and lr not negative")
        if min(self.reuse, self.reuse_buffer) < 1 or min(self.batch_unrolls, self.minibatch) < 0:
            raise ValueError("reuse and reuse_buffer must be at least 1, batch_unrolls and minibatch 0")


@dataclass(frozen=True, slots=True)
class Impala:
    """The ``Algorithm`` of this module. Off-policy by as much as V-trace's clipping bears."""

    config: ImpalaConfig

    def prepare(self, network: ActorCritic, batch: Batch) -> Batch:
        """Nothing: targets follow the network from minibatch to minibatch."""
        return batch

    def minibatches(self, samples: Batch, generator: torch.Generator) -> list[list[Tensor]]:
        """One pass over the lanes, whole ones: V-trace looks along time."""
        t_max, n = samples.action_TN.shape
        if not self.config.minibatch or self.config.minibatch >= t_max * n:
            return [[torch.arange(n)]]
        lanes = max(1, self.config.minibatch // t_max)
        return [list(torch.split(torch.randperm(n, generator=generator), lanes))]

    def loss(
        self, network: ActorCritic, batch: Batch, samples: Batch, index_N: Tensor, progress: float
    ) -> LossOut:
        """Policy loss + value_coef * value loss - entropy_coef * entropy, over the lanes ``index_N``."""
        config = self.config
        action_TN, reward_TN, behaviour_log_prob_TN, terminated_TN, truncated_TN = (
            whole[:, index_N]
            for whole in (
                batch.action_TN, batch.reward_TN, batch.log_prob_TN, batch.terminated_TN, batch.truncated_TN
            )
        )  # fmt: skip
        out = network(batch.stack(batch.stack_index_TNK[:, index_N].flatten(0, 1)))
        log_prob_BA = out.logits_BA.log_softmax(-1)
        log_prob_B = log_prob_BA.gather(1, action_TN.reshape(-1, 1)).squeeze(1)
        value_TN = out.value_B.view(action_TN.shape)
        log_ratio_B = log_prob_B - behaviour_log_prob_TN.flatten()
        with torch.no_grad():
            target_TN, advantage_TN = vtrace(
                log_ratio_B.view(action_TN.shape),
                reward_TN,
                value_TN,
                next_values(network, batch, value_TN.detach(), index_N),
                terminated_TN,
                terminated_TN | truncated_TN,
                gamma=config.gamma,
                lam=config.vtrace_lambda,
                rho_clip=config.rho_clip,
                c_clip=config.c_clip,
            )
            advantage_B = advantage_TN.flatten()
            if config.normalise_advantages and len(advantage_B) > 1:
                advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std() + 1e-8)
            rho_B = log_ratio_B.exp().clamp(max=config.rho_clip)
        if config.clip is None:
            policy = -(rho_B * advantage_B * log_prob_B).mean()
        else:
            policy = clipped_surrogate(log_ratio_B, advantage_B, config.clip)
        value = value_loss(out.value_B, out.value_B, target_TN.flatten(), clip=None)
        bonus = entropy(log_prob_BA)
        total = policy + config.value_coef * value - linear(config.entropy_coef, progress) * bonus
        with torch.no_grad():
            metrics = {
                "policy_loss": policy.detach(),
                "value_loss": value.detach(),
                "entropy": bonus.detach(),
                "approx_kl": approx_kl(log_ratio_B),
                "rho_mean": rho_B.mean(),
                "rho_clipped": (log_ratio_B.exp() > config.rho_clip).float().mean(),
                "explained_variance": explained_variance(out.value_B, target_TN.flatten()),
                "value_mean": out.value_B.mean(),
                "return_target_mean": target_TN.mean(),
            }
        return LossOut(total, metrics)

    def stop(self, metrics: Mapping[str, Tensor]) -> bool:
        return False

    def diagnose(self, samples: Batch) -> dict[str, float]:
        return {}
