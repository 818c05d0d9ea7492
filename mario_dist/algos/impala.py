"""IMPALA (Espeholt et al. 2018): actor-critic on unrolls that older policies made, corrected by V-trace.

With ``clip`` set the policy's objective is PPO's clipped surrogate on V-trace's advantages: APPO, as RLlib
names it (the idea is IMPACT's; Luo et al. 2020). It is clipped around the policy that the learner had when
the batch came: around the older one that acted, the lag alone would have spent the range. What lies between
those two is a weight (the decoupled objective of Hilton et al. 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mario_dist.algos.api import Batch, Epochs, LossOut, next_values
from mario_dist.nets.network import ActorCritic
from mario_dist.ops.losses import approx_kl, clipped_surrogate, entropy, value_loss
from mario_dist.ops.returns import explained_variance, vtrace
from mario_dist.ops.schedules import linear


@dataclass(frozen=True, slots=True)
class ImpalaConfig:
    """IMPALA's settings. A pair ``(start, end)`` is a linear schedule over the run's total steps.

    vtrace_lambda, rho_clip, c_clip: of ``ops.returns.vtrace``. clip: the surrogate's clip range, None for
    the plain policy gradient. With it, or with minibatches, the targets take a forward pass of their own.
    batch_unrolls: unrolls in a batch, of whichever actors they are; 0 for half as many as there are actors.
    minibatch: samples per gradient step; 0 for the whole batch at once.
    reuse: how often a batch is learned from on average; reuse_buffer: newest batches that are drawn from.
    optimiser_eps: added outside the root, as PyTorch does, so the paper's 0.1 of RMSProp is another number.
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
    optimiser_eps: float = 0.01
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


class Targets(NamedTuple):
    """V-trace's, of every step, and the log-probability of its action then: float32 [T * N]."""

    target_B: Tensor
    advantage_B: Tensor
    log_prob_B: Tensor


@dataclass(frozen=True, slots=True)
class Impala:
    """The ``Algorithm`` of this module. Off-policy by as much as V-trace's clipping bears."""

    config: ImpalaConfig

    @torch.no_grad()
    def prepare(self, network: ActorCritic, batch: Batch) -> Targets | None:
        """Targets of the network as it is now; None where the loss of the whole batch makes them itself,
        from the pass that it makes anyway."""
        if self.config.clip is None and self._whole(batch):
            return None
        out = network(batch.stack(batch.stack_index_TNK.flatten(0, 1)))
        log_prob_B = _log_prob(out.logits_BA.log_softmax(-1), batch.action_TN.flatten())
        return self._targets(network, batch, log_prob_B, out.value_B)

    def minibatches(self, batch: Batch, samples: Targets | None, generator: torch.Generator) -> Epochs:
        """One pass over all samples: at once, or in a new order cut into minibatches."""
        count = batch.action_TN.numel()
        if self._whole(batch):
            return [[torch.arange(count)]]
        return [list(torch.split(torch.randperm(count, generator=generator), self.config.minibatch))]

    def loss(
        self, network: ActorCritic, batch: Batch, samples: Targets | None, index_B: Tensor, progress: float
    ) -> LossOut:
        """Policy loss + value_coef * value loss - entropy_coef * entropy, over one minibatch."""
        config = self.config
        out = network(batch.stack(batch.stack_index_TNK.flatten(0, 1)[index_B]))
        log_prob_BA = out.logits_BA.log_softmax(-1)
        log_prob_B = _log_prob(log_prob_BA, batch.action_TN.flatten()[index_B])
        behaviour_B = batch.log_prob_TN.flatten()[index_B]
        log_ratio_B = log_prob_B - behaviour_B
        with torch.no_grad():
            if samples is None:
                samples = self._targets(network, batch, log_prob_B.detach(), out.value_B.detach())
            target_B, advantage_B = samples.target_B[index_B], samples.advantage_B[index_B]
            if config.normalise_advantages and len(advantage_B) > 1:
                advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std() + 1e-8)
            rho_B = log_ratio_B.exp().clamp(max=config.rho_clip)
        if config.clip is None:
            policy = -(rho_B * advantage_B * log_prob_B).mean()
        else:
            proximal_B = samples.log_prob_B[index_B]
            weight_B = (proximal_B - behaviour_B).exp().clamp(max=config.rho_clip)
            policy = clipped_surrogate(log_prob_B - proximal_B, weight_B * advantage_B, config.clip)
        value = value_loss(out.value_B, out.value_B, target_B, clip=None)
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
                "explained_variance": explained_variance(out.value_B, target_B),
                "value_mean": out.value_B.mean(),
                "return_target_mean": target_B.mean(),
            }
        return LossOut(total, metrics)

    def stop(self, metrics: Mapping[str, Tensor]) -> bool:
        return False

    def diagnose(self, samples: Targets | None) -> dict[str, float]:
        return {}

    def _whole(self, batch: Batch) -> bool:
        return not 0 < self.config.minibatch < batch.action_TN.numel()

    def _targets(self, network: ActorCritic, batch: Batch, log_prob_B: Tensor, value_B: Tensor) -> Targets:
        config, value_TN = self.config, value_B.view(batch.action_TN.shape)
        target_TN, advantage_TN = vtrace(
            log_prob_B.view(value_TN.shape) - batch.log_prob_TN,
            batch.reward_TN,
            value_TN,
            next_values(network, batch, value_TN),
            batch.terminated_TN,
            batch.terminated_TN | batch.truncated_TN,
            gamma=config.gamma,
            lam=config.vtrace_lambda,
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
        )
        return Targets(target_TN.flatten(), advantage_TN.flatten(), log_prob_B)


def _log_prob(log_prob_BA: Tensor, action_B: Tensor) -> Tensor:
    """Of these actions: float32 [B]."""
    return log_prob_BA.gather(1, action_B[:, None]).squeeze(1)
