"""Initial priorities: the acting network's own errors, so that new transitions are seen by their worth."""

import numpy as np
import torch

from mario_dist.ops.returns import n_step_return
from mario_dist.types import F32, Arrays, Bool

_NAMES = ("reward", "q", "value", "terminated", "truncated", "final_value")


class InitialPriorities:
    """Absolute n-step errors of an actor's unrolls, each step's once its return is complete: n steps later
    (Horgan et al. 2018, algorithm 1). Keeps the n last steps of the unroll before."""

    def __init__(self, n_step: int, gamma: float) -> None:
        self._n_step = n_step
        self._gamma = gamma
        self._before: dict[str, np.ndarray] = {}

    def priority(
        self, *, reward: F32, q: F32, value: F32, terminated: Bool, truncated: Bool, final_value: F32
    ) -> F32:
        """float32 [T, N], row t of the step n before step t; the first n rows of the first unroll are 0.

        q: the value of the action taken; value: of the best one; final_value: of the true final frame where
        a step was truncated, anything elsewhere. All [T, N].
        """
        now = dict(zip(_NAMES, (reward, q, value, terminated, truncated, final_value), strict=True))
        before = self._before or {k: np.zeros_like(v[: self._n_step]) for k, v in now.items()}
        joined = {k: torch.from_numpy(np.concatenate([before[k], v])) for k, v in now.items()}
        target_TN = n_step_return(
            joined["reward"],
            joined["value"],
            joined["terminated"],
            joined["truncated"],
            joined["final_value"],
            gamma=self._gamma,
            n_step=self._n_step,
        )
        error: F32 = (target_TN - joined["q"][: len(reward)]).abs().numpy()
        if not self._before:
            error[: self._n_step] = 0.0
        self._before = {k: v[-self._n_step :].copy() for k, v in now.items()}
        return error

    def state(self) -> Arrays:
        return {**self._before}

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()``; one of another n is of no use, and its steps get no priorities."""
        fits = arrays and all(len(array) == self._n_step for array in arrays.values())
        self._before = {**arrays} if fits else {}
