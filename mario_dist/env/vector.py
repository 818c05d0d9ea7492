"""The contract of N lanes stepped together, and the bookkeeping that its implementations share."""

import json
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mario_dist.types import U8, Arrays, EnvSpec, EnvStep


class VectorEnv(Protocol):
    """N independent lanes of one environment.

    ``reset`` starts every lane and returns the first frames. ``step`` advances every lane by one action;
    lanes whose episode ended are reset within the same step, as ``EnvStep`` says. Every lane has its own
    random stream, so what a lane does depends on its seed and its actions alone, not on the lanes beside
    it. ``state`` and ``restore`` carry everything that the future depends on.
    """

    @property
    def spec(self) -> EnvSpec: ...

    @property
    def n_lanes(self) -> int: ...

    def reset(self) -> U8:
        """Start an episode in every lane: uint8 [N, H, W], a buffer of the environment's own."""

    def step(self, action_N: NDArray[np.int64]) -> EnvStep:
        """One agent step in every lane. ``reset`` or ``restore`` comes first."""

    def state(self) -> Arrays:
        """Everything that the next steps depend on."""

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()`` of an environment with the same configuration."""

    def close(self) -> None: ...


class EpisodeClock:
    """Return, length, emulator frames and wall-clock time of the running episode of each lane."""

    def __init__(self, n_lanes: int) -> None:
        self.return_N = np.zeros(n_lanes, dtype=np.float64)
        self.length_N = np.zeros(n_lanes, dtype=np.int64)
        self.frames_N = np.zeros(n_lanes, dtype=np.int64)
        self._started_at = [time.monotonic()] * n_lanes

    def tick(self, reward_N: NDArray[np.float32]) -> None:
        self.return_N += reward_N
        self.length_N += 1

    def seconds(self, lane: int) -> float:
        return time.monotonic() - self._started_at[lane]

    def restart(self, lane: int) -> None:
        self.return_N[lane] = 0.0
        self.length_N[lane] = 0
        self.frames_N[lane] = 0
        self._started_at[lane] = time.monotonic()

    def state(self) -> Arrays:
        return {
            "clock.return": self.return_N.copy(),
            "clock.length": self.length_N.copy(),
            "clock.frames": self.frames_N.copy(),
        }

    def restore(self, arrays: Arrays, frame_skip: int = 1) -> None:
        """``frame_skip`` is for states from before frames were counted."""
        self.return_N = arrays["clock.return"].astype(np.float64)
        self.length_N = arrays["clock.length"].astype(np.int64)
        self.frames_N = arrays.get("clock.frames", self.length_N * frame_skip).astype(np.int64)


def lane_generators(seed: Sequence[int], n_lanes: int) -> list[np.random.Generator]:
    """One independent random stream for each lane."""
    # NumPy pads seeds with zeros: without its length, (s,) lane 1 would be (s, 1) lane 0.
    return [np.random.default_rng([len(seed), *seed, lane]) for lane in range(n_lanes)]


def generator_state(rng: np.random.Generator) -> U8:
    """A generator's state as bytes, without pickle."""
    return np.frombuffer(json.dumps(rng.bit_generator.state).encode(), dtype=np.uint8)


def restore_generator(rng: np.random.Generator, state: NDArray[np.generic]) -> None:
    rng.bit_generator.state = json.loads(state.tobytes())
