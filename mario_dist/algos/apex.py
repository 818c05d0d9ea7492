"""Ape-X DQN (Horgan et al. 2018): dueling double DQN on n-step returns from a prioritised replay.

With ``double`` and ``dueling`` off, one step, a uniform replay and one epsilon for all lanes it is DQN
(Mnih et al. 2015).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mario_dist.nets.network import Head, QNetwork, scaled
from mario_dist.ops.losses import bootstrap, huber, td_error


@dataclass(frozen=True, slots=True)
class ApexConfig:
    """Ape-X's settings; the paper's defaults where a laptop can have them. Pairs are linear over the run.

    priority_exponent: alpha, 0 for a uniform replay. importance_exponent: beta.
    epsilon_ladder: (base, alpha) of ``ops.exploration.epsilon_ladder`` over all lanes of all actors, or None
    for ``epsilon``, a schedule from one to the other over ``epsilon_share`` of the run, for all lanes alike.
    batch: transitions in one update. target_every: updates between two copies to the target network.
    publish_every: updates between two versions of the weights that the actors get.
    """

    replayed: ClassVar[bool] = True
    usual_lag: ClassVar[int] = 0
    bears_lag: ClassVar[int | None] = None

    name: Literal["apex"] = "apex"
    gamma: float = 0.99
    n_step: int = 3
    double: bool = True
    dueling: bool = True
    huber_delta: float = 1.0
    priority_exponent: float = 0.6
    importance_exponent: tuple[float, float] = (0.4, 0.4)
    epsilon_ladder: tuple[float, float] | None = (0.4, 7.0)
    epsilon: tuple[float, float] = (1.0, 0.05)
    epsilon_share: float = 0.1
    batch: int = 512
    lr: tuple[float, float] = (6.25e-5, 6.25e-5)
    adam_eps: float = 1.5e-4
    max_grad_norm: float = 40.0
    target_every: int = 2_500
    publish_every: int = 16

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0 or not 0.0 <= self.priority_exponent <= 1.0:
            raise ValueError("gamma and priority_exponent must be in [0, 1]")
        if not all(0.0 <= e <= 1.0 for e in (*self.epsilon, *self.importance_exponent)):
            raise ValueError("epsilon and importance_exponent must be in [0, 1]")
        base, alpha = self.epsilon_ladder or (1.0, 0.0)
        if not 0.0 < base <= 1.0 or alpha < 0.0:
            raise ValueError("epsilon_ladder must be a base in (0, 1] and an alpha that is not negative")
        if min(self.n_step, self.batch, self.target_every, self.publish_every) < 1:
            raise ValueError("n_step, batch, target_every and publish_every must be at least 1")
        if min(self.huber_delta, self.max_grad_norm) <= 0.0 or min(self.lr) < 0.0:
            raise ValueError("huber_delta and max_grad_norm must be positive and lr not negative")
        if not 0.0 < self.epsilon_share <= 1.0:
            raise ValueError("epsilon_share must be in (0, 1]")

    @property
    def head(self) -> Head:
        return "dueling" if self.dueling else "q"


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """Sampled transitions on the learner's device, with stacks as uint8 [B, K, H, W].

    return_B, discount_B: as in ``types.Transitions``; weight_B: float32 importance weights, at most 1.
    """

    stack_BKHW: Tensor
    next_stack_BKHW: Tensor
    action_B: Tensor
    return_B: Tensor
    discount_B: Tensor
    weight_B: Tensor


class QLossOut(NamedTuple):
    """A scalar to minimise, each transition's error (float32 [B], detached), and scalars to log."""

    loss: Tensor
    error_B: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ApexDQN:
    """The loss; the learner owns the networks, the optimiser and the loop. It bears any policy lag."""

    config: ApexConfig

    def loss(self, online: QNetwork, target: QNetwork, batch: ReplayBatch) -> QLossOut:
        """Importance-weighted Huber loss of the n-step (double) Q-learning error."""
        config = self.config
        with torch.no_grad():
            next_stack = scaled(batch.next_stack_BKHW)  # once for both networks
            next_q_BA = target(next_stack).logits_BA
            chooser_BA = online(next_stack).logits_BA if config.double else next_q_BA
            target_B = batch.return_B + batch.discount_B * bootstrap(next_q_BA, chooser_BA)
        q_BA = online(batch.stack_BKHW).logits_BA
        error_B = td_error(q_BA, batch.action_B, target_B)
        loss = (batch.weight_B * huber(error_B, config.huber_delta)).mean()
        with torch.no_grad():
            metrics = {
                "q_mean": q_BA.mean(),
                "q_max": q_BA.max(),
                "q_target_mean": target_B.mean(),
                "td_error": error_B.abs().mean(),
                "importance_mean": batch.weight_B.mean(),
            }
        return QLossOut(loss, error_B.detach(), metrics)
