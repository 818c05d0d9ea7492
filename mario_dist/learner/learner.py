"""One network, one optimiser, one step a batch."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mario_dist.algos.api import Algorithm, Batch
from mario_dist.learner.batch import make_batch
from mario_dist.learner.device import autocast, choose_device
from mario_dist.learner.optim import (
    OptimiserConfig,
    descend,
    make_optimiser,
    optimiser_arrays,
    restore_optimiser,
    set_lr,
)
from mario_dist.learner.reuse import ReuseBuffer
from mario_dist.nets import ActorCritic, get_weights, set_weights
from mario_dist.ops.schedules import linear
from mario_dist.types import Arrays, StepReport, Unroll, Weights, part


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """A batch on its way to the learner's device; ``copied`` is None where it is there."""

    batch: Batch
    copied: torch.cuda.Event | None


class Learner:
    """Trains ``network`` by ``algorithm``.

    version counts the steps that changed the weights. reuse: how often each batch is learned from on average,
    drawn from the newest ``reuse_buffer`` ones; that buffer is not part of ``state``.
    threads: PyTorch's CPU threads during a step; 0 leaves them as they are.
    """

    def __init__(
        self,
        network: ActorCritic,
        algorithm: Algorithm[Any],
        *,
        frame_stack: int,
        optimiser: OptimiserConfig,
        seed: int,
        reuse: int = 1,
        reuse_buffer: int = 1,
        device: str = "auto",
        precision: str = "auto",
        compiled: bool = False,
        threads: int = 0,
    ) -> None:
        self._threads = threads
        self.device = choose_device(device)
        self.network = network.to(self.device)
        if compiled:
            self.network.compile()
        self.version = 0
        self._lr_scale = 1.0
        self._algorithm = algorithm
        self._frame_stack = frame_stack
        self._optimiser_config = optimiser
        self._precision = precision
        self._optimiser = make_optimiser(self.network, optimiser)
        self._generator = torch.Generator().manual_seed(seed)
        self._reuse = ReuseBuffer[tuple[Batch, Any]](reuse_buffer, reuse, seed)
        cuda = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]

    def step(self, unrolls: Sequence[Unroll], progress: float) -> StepReport:
        """Learn from these unrolls; ``progress`` is the done part of the run, 0 to 1.

        Raises ``FloatingPointError`` where the loss is not finite: the weights would be lost.
        """
        return self.learn(self.stage(unrolls), progress)

    def stage(self, unrolls: Sequence[Unroll]) -> StagedBatch:
        """Make a batch of these unrolls on the device. Another thread may do so while this one learns."""
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            batch = make_batch(unrolls, self._frame_stack, self.device)
            copied = self._copies.record_event() if self._copies is not None else None
        return StagedBatch(batch, copied)

    def learn(self, staged: StagedBatch, progress: float) -> StepReport:
        """Learn from a staged batch, and from earlier ones as often as ``reuse`` says; else as ``step``.

        A batch's targets are made once, when it comes.
        """
        if self._threads:  # in one process, the rollouts have theirs
            torch.set_num_threads(self._threads)
        if staged.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(staged.copied)
            for tensor in staged.batch.tensors():
                # Its memory belongs to the other stream, which must not take it back before this one is done.
                tensor.record_stream(torch.cuda.current_stream(self.device))
        lr = self._lr_scale * linear(self._optimiser_config.lr, progress)
        set_lr(self._optimiser, lr)
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        gradient_steps = 0
        versions: list[int] = []
        diagnosis: Mapping[str, float] = {}
        targets = self._algorithm.prepare(self.network, staged.batch)
        for batch, samples in self._reuse.add_and_draw((staged.batch, targets)):
            count, diagnosis = self._learn(batch, samples, progress, sums)
            gradient_steps += count
            versions += batch.weights_versions
        self.version += 1
        means = checked_means(sums, gradient_steps, self.version)
        lags = [self.version - 1 - version for version in versions]
        extra = {
            "lr": lr,
            "policy_lag": float(max(lags)),
            "policy_lag_mean": sum(lags) / len(lags),
        }
        return StepReport(self.version, staged.batch.steps, {**means, **diagnosis, **extra})

    def _learn(
        self, batch: Batch, samples: object, progress: float, sums: dict[str, torch.Tensor]
    ) -> tuple[int, Mapping[str, float]]:
        """All gradient steps of one batch; their number, and what the batch says as a whole."""
        gradient_steps = 0
        for epoch in self._algorithm.minibatches(batch, samples, self._generator):
            stop = False
            for index_B in epoch:
                with autocast(self.device, self._precision):
                    loss, metrics = self._algorithm.loss(
                        self.network, batch, samples, index_B.to(self.device), progress
                    )
                norm = descend(self._optimiser, self.network, loss, self._optimiser_config.max_grad_norm)
                gradient_steps += 1
                for name, value in {**metrics, "loss": loss.detach(), "grad_norm": norm}.items():
                    sums[name] += value
                stop = stop or self._algorithm.stop(metrics)
            if stop:
                break
        return gradient_steps, self._algorithm.diagnose(samples)

    def weights(self) -> Weights:
        return get_weights(self.network, self.version)

    def state(self) -> Arrays:
        """Network, optimiser, random stream and version, by prefixed names."""
        arrays: Arrays = {f"network.{k}": v for k, v in get_weights(self.network, 0).arrays.items()}
        arrays |= optimiser_arrays(self._optimiser, "optimiser.")
        arrays["generator"] = self._generator.get_state().numpy().copy()
        arrays["version"] = torch.tensor(self.version).numpy()
        arrays["lr_scale"] = np.array(self._lr_scale)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()``. Raises ``ValueError`` where it is another network's."""
        set_weights(self.network, network_arrays(arrays))
        restore_optimiser(self._optimiser, arrays, "optimiser.")
        self._generator.set_state(torch.tensor(arrays["generator"]))
        self.version = int(arrays["version"])
        self._lr_scale = float(arrays.get("lr_scale", 1.0))

    def recover(self, arrays: Arrays, lr_factor: float) -> None:
        """Take network and optimiser from an earlier ``state()``, as a new version; learn more slowly."""
        set_weights(self.network, network_arrays(arrays))
        restore_optimiser(self._optimiser, arrays, "optimiser.")
        self.version += 1
        self._lr_scale *= lr_factor


def checked_means(sums: Mapping[str, torch.Tensor], count: int, version: int) -> dict[str, float]:
    """The means of summed metrics. Raises ``FloatingPointError`` where the loss or gradient is not finite."""
    means = {name: float(total) / count for name, total in sums.items()}
    if not (math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"])):
        raise FloatingPointError(f"the loss is not finite at version {version}: {means}")
    return means


def network_arrays(arrays: Arrays) -> Arrays:
    """The network's parameters among a learner's ``state()``."""
    return part(arrays, "network.")
