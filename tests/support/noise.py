"""Unrolls of noise, and a network whose values any wrong pixel would change."""

import numpy as np
import torch
from torch import Tensor, nn

from mario_dist.algos.api import Batch
from mario_dist.learner.batch import make_batch
from mario_dist.nets import NetOut
from mario_dist.rollout import FrameStack
from mario_dist.types import Unroll

K, T, N, ACTIONS = 3, 9, 4, 5


class PixelValue(nn.Module):
    """Values that any wrong pixel, or pixels in a wrong order, would change; logits that follow a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(ACTIONS))
        self.register_buffer("weight_K", torch.tensor([1.0, 7.0, 49.0]))

    def forward(self, stack_BKHW: Tensor) -> NetOut:
        value_B = stack_BKHW.float().mean((-2, -1)) @ self.weight_K / 255.0
        return NetOut(self.bias.expand(len(stack_BKHW), -1), value_B + 0.0 * self.bias.sum())


def value_of(stack_KHW: np.ndarray) -> float:
    return float(stack_KHW.astype(np.float64).mean((1, 2)) @ [1.0, 7.0, 49.0] / 255.0)


def play(seed: int) -> tuple[Unroll, np.ndarray]:
    """An unroll of noise, and the value of the observation that each step really led to: [T, N]."""
    rng = np.random.default_rng(seed)

    def frames() -> np.ndarray:
        return rng.integers(0, 256, size=(N, 2, 2), dtype=np.uint8)

    stack = FrameStack(K)
    stack.start(frames())
    rows, finals = [*stack.frames_KNHW.copy()], []
    terminated, truncated = np.zeros((2, T, N), dtype=np.bool_)
    value, next_value = np.zeros((2, T, N), dtype=np.float32)
    for t in range(T):
        seen = stack.stack_NKHW()
        value[t] = [value_of(s) for s in seen]
        terminated[t] = rng.random(N) < 0.15
        truncated[t] = ~terminated[t] & (rng.random(N) < 0.2)
        newest, last = frames(), frames()
        finals += [(t, int(n), last[n]) for n in np.flatnonzero(truncated[t])]
        rows.append(newest)
        stack.push(newest, terminated[t] | truncated[t])
        after = stack.stack_NKHW()
        for n in range(N):
            true_end = np.stack([*seen[n, 1:], last[n]])
            next_value[t, n] = value_of(true_end if truncated[t, n] else after[n])
    unroll = Unroll(
        frames=np.array(rows),
        action=rng.integers(0, ACTIONS, (T, N)),
        reward=rng.normal(size=(T, N)).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        log_prob=rng.normal(-1.6, 0.1, (T, N)).astype(np.float32),
        value=value,
        final_frame=np.array([f for *_, f in finals], dtype=np.uint8).reshape(-1, 2, 2),
        final_t=np.array([t for t, *_ in finals], dtype=np.int64),
        final_n=np.array([n for _, n, _ in finals], dtype=np.int64),
        weights_version=0,
        actor=0,
        incarnation=0,
        sequence=0,
    )
    unroll.check(K)
    return unroll, next_value


def a_batch(*unrolls: Unroll) -> Batch:
    return make_batch(unrolls, K, torch.device("cpu"))
