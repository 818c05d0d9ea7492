"""One network, one optimiser, one step a batch."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mario_dist.algos.api import Algorithm
from mario_dist.learner.batch import make_batch
from mario_dist.learner.device import autocast, choose_device
from mario_dist.learner.optim import descend, make_adam, optimiser_arrays, restore_optimiser, set_lr
from mario_dist.nets import ActorCritic, get_weights, set_weights
from mario_dist.ops.schedules import linear
from mario_dist.types import Arrays, StepReport, Unroll, Weights, part


class Learner:
    """Trains ``network`` by ``algorithm``.

    lr: linear schedule over the run. version counts the steps that changed the weights.
    threads: PyTorch's CPU threads during a step; 0 leaves them as they are.
    """

    def __init__(
        self,
        network: ActorCritic,
        algorithm: Algorithm[Any],
        *,
        frame_stack: int,
        lr: tuple[float, float],
        adam_eps: float,
        max_grad_norm: float,
        seed: int,
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
        self._algorithm = algorithm
        self._frame_stack = frame_stack
        self._lr = lr
        self._max_grad_norm = max_grad_norm
        self._precision = precision
        self._optimiser = make_adam(self.network, adam_eps)
        self._generator = torch.Generator().manual_seed(seed)

    def step(self, unrolls: Sequence[Unroll], progress: float) -> StepReport:
        """Learn from these unrolls; ``progress`` is the done part of the run, 0 to 1.

        Raises ``FloatingPointError`` where the loss is not finite: the weights would be lost.
        """
        if self._threads:  # in one process, the rollouts have theirs
            torch.set_num_threads(self._threads)
        lr = linear(self._lr, progress)
        set_lr(self._optimiser, lr)
        batch = make_batch(unrolls, self._frame_stack, self.device)
        samples = self._algorithm.prepare(self.network, batch)
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        gradient_steps = 0
        for epoch in self._algorithm.minibatches(samples, self._generator):
            stop = False
            for index_B in epoch:
                with autocast(self.device, self._precision):
                    loss, metrics = self._algorithm.loss(
                        self.network, batch, samples, index_B.to(self.device), progress
                    )
                norm = descend(self._optimiser, self.network, loss, self._max_grad_norm)
                gradient_steps += 1
                for name, value in {**metrics, "loss": loss.detach(), "grad_norm": norm}.items():
                    sums[name] += value
                stop = stop or self._algorithm.stop(metrics)
            if stop:
                break
        self.version += 1
        means = checked_means(sums, gradient_steps, self.version)
        lag = self.version - 1 - min(batch.weights_versions)
        return StepReport(
            self.version,
            batch.steps,
            {**means, **self._algorithm.diagnose(samples), "lr": lr, "policy_lag": float(lag)},
        )

    def weights(self) -> Weights:
        return get_weights(self.network, self.version)

    def state(self) -> Arrays:
        """Network, optimiser, random stream and version, by prefixed names."""
        arrays: Arrays = {f"network.{k}": v for k, v in get_weights(self.network, 0).arrays.items()}
        arrays |= optimiser_arrays(self._optimiser, "optimiser.")
        arrays["generator"] = self._generator.get_state().numpy().copy()
        arrays["version"] = torch.tensor(self.version).numpy()
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()``. Raises ``ValueError`` where it is another network's."""
        set_weights(self.network, network_arrays(arrays))
        restore_optimiser(self._optimiser, arrays, "optimiser.")
        self._generator.set_state(torch.tensor(arrays["generator"]))
        self.version = int(arrays["version"])


def checked_means(sums: Mapping[str, torch.Tensor], count: int, version: int) -> dict[str, float]:
    """The means of summed metrics. Raises ``FloatingPointError`` where the loss or gradient is not finite."""
    means = {name: float(total) / count for name, total in sums.items()}
    if not (math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"])):
        raise FloatingPointError(f"the loss is not finite at version {version}: {means}")
    return means


def network_arrays(arrays: Arrays) -> Arrays:
    """The network's parameters among a learner's ``state()``."""
    return part(arrays, "network.")
