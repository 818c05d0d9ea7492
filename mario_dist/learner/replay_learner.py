"""A Q-network, its target network and its optimiser: one step a sampled batch."""

import copy
from collections import defaultdict

import numpy as np
import torch

from mario_dist.algos.apex import ApexDQN
from mario_dist.learner.batch import make_replay_batch
from mario_dist.learner.device import autocast, choose_device
from mario_dist.learner.learner import checked_means
from mario_dist.learner.optim import (
    OptimiserConfig,
    descend,
    make_optimiser,
    optimiser_arrays,
    restore_optimiser,
    set_lr,
)
from mario_dist.nets import QNetwork, get_weights, set_weights
from mario_dist.ops.schedules import linear
from mario_dist.types import F32, Arrays, StepReport, Transitions, Weights, part


class ReplayLearner:
    """Trains ``network`` by ``algorithm`` on sampled transitions. version counts its updates.

    threads: PyTorch's CPU threads during an update; 0 leaves them as they are.
    """

    def __init__(
        self,
        network: QNetwork,
        algorithm: ApexDQN,
        *,
        frame_stack: int,
        device: str = "auto",
        precision: str = "auto",
        compiled: bool = False,
        threads: int = 0,
    ) -> None:
        self._threads = threads
        self.device = choose_device(device)
        self.network = network.to(self.device)
        self._target = copy.deepcopy(self.network).requires_grad_(False)
        if compiled:
            self.network.compile()
            self._target.compile()
        self.version = 0
        self._lr_scale = 1.0
        self._algorithm = algorithm
        self._frame_stack = frame_stack
        self._precision = precision
        config = algorithm.config
        self._optimiser = make_optimiser(
            self.network, OptimiserConfig(config.lr, config.adam_eps, config.max_grad_norm)
        )
        self._sums: dict[str, torch.Tensor] = self._no_sums()
        self._updates = self._samples = 0
        self._lr = 0.0

    def update(self, sample: Transitions, weight_B: F32, progress: float) -> F32:
        """Learn from one batch with its importance weights; the absolute errors: float32 [B].

        ``progress`` is the done part of the run, 0 to 1.
        """
        if self._threads:  # in one process, the rollouts have theirs
            torch.set_num_threads(self._threads)
        config = self._algorithm.config
        self._lr = self._lr_scale * linear(config.lr, progress)
        set_lr(self._optimiser, self._lr)
        batch = make_replay_batch(sample, weight_B, self._frame_stack, self.device)
        with autocast(self.device, self._precision):
            loss, error_B, metrics = self._algorithm.loss(self.network, self._target, batch)
        norm = descend(self._optimiser, self.network, loss, config.max_grad_norm)
        for name, value in {**metrics, "loss": loss.detach(), "grad_norm": norm}.items():
            self._sums[name] += value
        self._updates += 1
        self._samples += len(sample.action_B)
        self.version += 1
        if self.version % config.target_every == 0:
            self._target.load_state_dict(self.network.state_dict())
        error: F32 = error_B.abs().cpu().numpy()
        return error

    def report(self) -> StepReport:
        """What the updates since the last report say, as means.

        Raises ``FloatingPointError`` where the loss is not finite: the weights would be lost.
        """
        means = checked_means(self._sums, self._updates, self.version) if self._updates else {}
        report = StepReport(self.version, self._samples, {**means, "lr": self._lr})
        self._sums = self._no_sums()
        self._updates = self._samples = 0
        return report

    def weights(self) -> Weights:
        return get_weights(self.network, self.version)

    def state(self) -> Arrays:
        """Both networks, the optimiser and the version, by prefixed names."""
        arrays: Arrays = {f"network.{k}": v for k, v in get_weights(self.network, 0).arrays.items()}
        arrays |= {f"target.{k}": v for k, v in get_weights(self._target, 0).arrays.items()}
        arrays |= optimiser_arrays(self._optimiser, "optimiser.")
        arrays["version"] = torch.tensor(self.version).numpy()
        arrays["lr_scale"] = np.array(self._lr_scale)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()``. Raises ``ValueError`` where it is another network's."""
        set_weights(self.network, part(arrays, "network."))
        set_weights(self._target, part(arrays, "target."))
        restore_optimiser(self._optimiser, arrays, "optimiser.")
        self.version = int(arrays["version"])
        self._lr_scale = float(arrays.get("lr_scale", 1.0))

    def recover(self, arrays: Arrays, lr_factor: float) -> None:
        """Take networks and optimiser from an earlier ``state()``, as a new version; learn more slowly."""
        set_weights(self.network, part(arrays, "network."))
        set_weights(self._target, part(arrays, "target."))
        restore_optimiser(self._optimiser, arrays, "optimiser.")
        self.version += 1
        self._lr_scale *= lr_factor

    def _no_sums(self) -> dict[str, torch.Tensor]:
        return defaultdict(lambda: torch.zeros((), device=self.device))
