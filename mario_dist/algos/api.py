"""What learner and algorithm pass each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mario_dist.nets.network import ActorCritic


@dataclass(frozen=True, slots=True)
class Batch:
    """Unrolls of all actors side by side, N the lanes of all of them, on the learner's device.

    frames_RHW holds every frame once, uint8 [(T + K) * N (+ F final frames), H, W]; ``stack`` gathers the
    stacks of any steps from it. Everything else is as in ``Unroll``.
    """

    frames_RHW: Tensor
    stack_index_TNK: Tensor
    bootstrap_index_NK: Tensor
    final_index_FK: Tensor
    final_tn_F2: Tensor
    action_TN: Tensor
    reward_TN: Tensor
    terminated_TN: Tensor
    truncated_TN: Tensor
    log_prob_TN: Tensor
    value_TN: Tensor
    weights_versions: tuple[int, ...]

    @property
    def steps(self) -> int:
        return self.action_TN.numel()

    def stack(self, index_BK: Tensor) -> Tensor:
        """The stacks at these rows of ``frames_RHW``: uint8 [B, K, H, W]."""
        return self.frames_RHW[index_BK]


class LossOut(NamedTuple):
    """A scalar to minimise, and scalars to log (detached tensors)."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Algorithm[S](Protocol):
    """Pure functions of tensors: the learner owns the network, the optimiser and the loop.

    ``S`` is the algorithm's own set of samples, which ``minibatches`` cuts up.
    """

    def prepare(self, network: ActorCritic, batch: Batch) -> S:
        """Targets for a batch, without gradients."""

    def minibatches(self, samples: S, generator: torch.Generator) -> list[list[Tensor]]:
        """For each epoch, the sample indices of each gradient step."""

    def loss(
        self, network: ActorCritic, batch: Batch, samples: S, index_B: Tensor, progress: float
    ) -> LossOut:
        """The loss of one minibatch; ``progress`` is the done part of the run, 0 to 1, for schedules."""

    def diagnose(self, samples: S) -> Mapping[str, float]:
        """Scalars to log of the batch as a whole."""

    def stop(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether what the last minibatch showed ends this batch's epochs."""
