"""Proximal policy optimisation (Schulman et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mario_dist.algos.api import Batch, Epochs, LossOut, next_values
from mario_dist.nets.network import ActorCritic
from mario_dist.ops.losses import approx_kl, clipped_surrogate, entropy, value_loss
from mario_dist.ops.returns import explained_variance, gae
from mario_dist.ops.schedules import linear


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """PPO's settings. A pair ``(start, end)`` is a linear schedule over the run's total steps.

    minibatch: samples per gradient step. value_clip: clip range of the value loss, None for no clipping.
    target_kl: no further epoch once a minibatch's approximate KL has passed it, None for never.
    """

    replayed: ClassVar[bool] = False
    usual_lag: ClassVar[int] = 0
    bears_lag: ClassVar[int | None] = 1

    name: Literal["ppo"] = "ppo"
    gamma: float = 0.9
    gae_lambda: float = 1.0
    clip: float = 0.2
    value_clip: float | None = None
    value_coef: float = 0.5
    entropy_coef: tuple[float, float] = (0.01, 0.01)
    lr: tuple[float, float] = (2.5e-4, 2.5e-4)
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    epochs: int = 4
    minibatch: int = 256
    target_kl: float | None = None
    normalise_advantages: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0 or not 0.0 <= self.gae_lambda <= 1.0:
            raise ValueError("gamma and gae_lambda must be in [0, 1]")
        if self.clip <= 0.0 or self.max_grad_norm <= 0.0 or min(self.lr) < 0.0:
            raise ValueError("clip and max_grad_norm must be positive and lr not negative")
        if self.epochs < 1 or self.minibatch < 1:
            raise ValueError("epochs and minibatch must be at least 1")


@dataclass(frozen=True, slots=True)
class Samples:
    """A batch flattened to B = T * N samples: indices of stacks, and PPO's targets."""

    stack_index_BK: Tensor
    action_B: Tensor
    log_prob_B: Tensor
    value_B: Tensor
    advantage_B: Tensor
    return_B: Tensor


@dataclass(frozen=True, slots=True)
class PPO:
    """The ``Algorithm`` of this module. On-policy: it bears a policy lag of 0 or 1."""

    config: PPOConfig

    @torch.no_grad()
    def prepare(self, network: ActorCritic, batch: Batch) -> Samples:
        """Advantages by GAE on the behaviour network's values, bootstrapped by the current one's."""
        advantage_TN = gae(
            batch.reward_TN,
            batch.value_TN,
            next_values(network, batch, batch.value_TN),
            batch.terminated_TN,
            batch.terminated_TN | batch.truncated_TN,
            gamma=self.config.gamma,
            lam=self.config.gae_lambda,
        )
        return Samples(
            stack_index_BK=batch.stack_index_TNK.flatten(0, 1),
            action_B=batch.action_TN.flatten(),
            log_prob_B=batch.log_prob_TN.flatten(),
            value_B=batch.value_TN.flatten(),
            advantage_B=advantage_TN.flatten(),
            return_B=(advantage_TN + batch.value_TN).flatten(),
        )

    def minibatches(self, batch: Batch, samples: Samples, generator: torch.Generator) -> Epochs:
        """A new permutation of all samples for each epoch, cut into minibatches."""
        n = batch.action_TN.numel()
        return [
            list(torch.split(torch.randperm(n, generator=generator), self.config.minibatch))
            for _ in range(self.config.epochs)
        ]

    def loss(
        self, network: ActorCritic, batch: Batch, samples: Samples, index_B: Tensor, progress: float
    ) -> LossOut:
        """Clipped surrogate + value_coef * value loss - entropy_coef * entropy, over one minibatch."""
        config = self.config
        out = network(batch.stack(samples.stack_index_BK[index_B]))
        log_prob_BA = out.logits_BA.log_softmax(-1)
        log_prob_B = log_prob_BA.gather(1, samples.action_B[index_B, None]).squeeze(1)
        log_ratio_B = log_prob_B - samples.log_prob_B[index_B]
        advantage_B = samples.advantage_B[index_B]
        if config.normalise_advantages and len(advantage_B) > 1:
            advantage_B = (advantage_B - advantage_B.mean()) / (advantage_B.std() + 1e-8)

        policy = clipped_surrogate(log_ratio_B, advantage_B, config.clip)
        value = value_loss(
            out.value_B, samples.value_B[index_B], samples.return_B[index_B], config.value_clip
        )
        bonus = entropy(log_prob_BA)
        total = policy + config.value_coef * value - linear(config.entropy_coef, progress) * bonus
        with torch.no_grad():
            metrics = {
                "policy_loss": policy.detach(),
                "value_loss": value.detach(),
                "entropy": bonus.detach(),
                "approx_kl": approx_kl(log_ratio_B),
                "clip_fraction": ((log_ratio_B.exp() - 1).abs() > config.clip).float().mean(),
            }
        return LossOut(total, metrics)

    def stop(self, metrics: Mapping[str, Tensor]) -> bool:
        return self.config.target_kl is not None and float(metrics["approx_kl"]) > self.config.target_kl

    def diagnose(self, samples: Samples) -> dict[str, float]:
        """What the batch says of the value function and the rewards."""
        return {
            "explained_variance": float(explained_variance(samples.value_B, samples.return_B)),
            "value_mean": float(samples.value_B.mean()),
            "return_target_mean": float(samples.return_B.mean()),
        }
