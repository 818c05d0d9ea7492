"""What learner and algorithm pass each other."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
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
        # One flat index_select: several times as fast on a CPU as indexing with a table.
        flat = torch.index_select(self.frames_RHW, 0, index_BK.flatten())
        return flat.view(*index_BK.shape, *self.frames_RHW.shape[1:])

    def tensors(self) -> list[Tensor]:
        return [value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)]


class LossOut(NamedTuple):
    """A scalar to minimise, and scalars to log (detached tensors)."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


def next_values(network: ActorCritic, batch: Batch, value_TN: Tensor) -> Tensor:
    """The values of the observations that the steps really led to: float32 [T, N].

    ``value_TN`` are those of the steps' own observations. The network values the bootstrap's and the true
    final frames'. Where a step was terminal they mean nothing.
    """
    next_value_TN = torch.empty_like(value_TN)
    next_value_TN[:-1] = value_TN[1:]
    next_value_TN[-1] = network(batch.stack(batch.bootstrap_index_NK)).value_B
    if len(batch.final_tn_F2):
        t_F, n_F = batch.final_tn_F2.unbind(1)
        next_value_TN[t_F, n_F] = network(batch.stack(batch.final_index_FK)).value_B
    return next_value_TN


Epochs = list[list[Tensor]]
"""Passes over a batch: the indices of the samples of each gradient step."""


class Algorithm[S](Protocol):
    """Pure functions of tensors: the learner owns the network, the optimiser and the loop.

    Its configuration says what it needs: ``replayed``, whether it learns from a replay; ``usual_lag`` and
    ``bears_lag``, the policy lag that it is made for and the largest that it bears (None for any). ``S`` is
    the algorithm's own set of samples, which ``minibatches`` cuts up.
    """

    def prepare(self, network: ActorCritic, batch: Batch) -> S:
        """Targets for a batch, without gradients."""

    def minibatches(self, batch: Batch, samples: S, generator: torch.Generator) -> Epochs:
        """For each epoch, the sample indices of each gradient step."""

    def loss(
        self, network: ActorCritic, batch: Batch, samples: S, index_B: Tensor, progress: float
    ) -> LossOut:
        """The loss of one minibatch; ``progress`` is the done part of the run, 0 to 1, for schedules."""

    def diagnose(self, samples: S) -> Mapping[str, float]:
        """Scalars to log of the batch as a whole."""

    def stop(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether what the last minibatch showed ends this batch's epochs."""
