"""A ROM-free environment with the contract of the real one, for tests.

A corridor: the frame shows how far the walker is and, as a bright row, which action walks on. The right
action moves one pixel and pays 1; a wrong one pays 0, and three in a row are a death. The corridor's end
is the flag and pays 5.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mario_dist.env.actions import action_names
from mario_dist.env.config import EnvConfig
from mario_dist.env.vector import EpisodeClock, generator_state, lane_generators, restore_generator
from mario_dist.types import U8, Arrays, EnvSpec, EnvStep, Episode, EpisodeEnd

LENGTH = 20
_WRONG_IN_A_ROW = 3


class ProbeVectorEnv:
    """A ``VectorEnv`` of corridors; it honours frame_size, frame_stack, actions, max_steps, stall_steps."""

    def __init__(self, config: EnvConfig, n_lanes: int, seed: Sequence[int]) -> None:
        names = action_names(config.actions)
        if config.frame_size[0] < len(names) or config.frame_size[1] < 2:
            raise ValueError(f"the probe needs frames of at least {len(names)} rows and 2 columns")
        self._config = config
        self._spec = EnvSpec(config.frame_size, config.frame_stack, names, config.frame_skip)
        self._rngs = lane_generators(seed, n_lanes)
        self._clock = EpisodeClock(n_lanes)
        self._frame_NHW = np.zeros((n_lanes, *config.frame_size), dtype=np.uint8)
        self._x_N = np.zeros(n_lanes, dtype=np.int64)
        self._wrong_N = np.zeros(n_lanes, dtype=np.int64)
        self._best_at_N = np.zeros(n_lanes, dtype=np.int64)
        self._answer_N = np.zeros(n_lanes, dtype=np.int64)

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def n_lanes(self) -> int:
        return len(self._rngs)

    def reset(self) -> U8:
        for lane in range(self.n_lanes):
            self._start(lane)
        return self._frame_NHW

    def step(self, action_N: NDArray[np.int64]) -> EnvStep:
        right_N = action_N == self._answer_N
        self._x_N += right_N
        self._wrong_N = np.where(right_N, 0, self._wrong_N + 1)
        flag_N = self._x_N >= LENGTH
        reward_N = (right_N + 5.0 * flag_N).astype(np.float32)
        self._clock.tick(reward_N)
        self._best_at_N = np.where(right_N, self._clock.length_N, self._best_at_N)
        for lane in range(self.n_lanes):
            self._ask(lane)

        ends = [self._end(lane) for lane in range(self.n_lanes)]
        lanes = [lane for lane, end in enumerate(ends) if end is not None]
        truncated_N = np.array([end == "truncated" for end in ends])
        terminated_N = np.array([end is not None for end in ends]) & ~truncated_N
        final_lane_F = np.array(lanes, dtype=np.int64)
        final_frame_FHW = self._frame_NHW[final_lane_F]
        ended = tuple(self._episode(lane, end) for lane, end in enumerate(ends) if end is not None)
        for lane in lanes:
            self._start(lane)
        return EnvStep(
            self._frame_NHW, reward_N, terminated_N, truncated_N, final_frame_FHW, final_lane_F, ended
        )

    def state(self) -> Arrays:
        arrays: Arrays = {
            **self._clock.state(),
            "frame": self._frame_NHW.copy(),
            "x": self._x_N.copy(),
            "wrong": self._wrong_N.copy(),
            "best_at": self._best_at_N.copy(),
            "answer": self._answer_N.copy(),
        }
        arrays.update({f"rng.{lane}": generator_state(rng) for lane, rng in enumerate(self._rngs)})
        return arrays

    def restore(self, arrays: Arrays) -> None:
        self._clock.restore(arrays)
        self._frame_NHW[:] = arrays["frame"]
        self._x_N[:] = arrays["x"]
        self._wrong_N[:] = arrays["wrong"]
        self._best_at_N[:] = arrays["best_at"]
        self._answer_N[:] = arrays["answer"]
        for lane, rng in enumerate(self._rngs):
            restore_generator(rng, arrays[f"rng.{lane}"])

    def close(self) -> None:
        """Nothing to free."""

    def _start(self, lane: int) -> None:
        self._x_N[lane] = self._wrong_N[lane] = self._best_at_N[lane] = 0
        self._clock.restart(lane)
        self._ask(lane)

    def _ask(self, lane: int) -> None:
        """Choose the next right action and draw it, with the walker's place in the last row."""
        frame = self._frame_NHW[lane]
        answer = int(self._rngs[lane].integers(self._spec.n_actions))
        self._answer_N[lane] = answer
        frame[:] = 0
        frame[answer] = 255
        frame[-1, int(self._x_N[lane]) * (frame.shape[1] - 1) // LENGTH] ^= 64

    def _end(self, lane: int) -> EpisodeEnd | None:
        length, config = int(self._clock.length_N[lane]), self._config
        if self._x_N[lane] >= LENGTH:
            return "flag"
        if self._wrong_N[lane] >= _WRONG_IN_A_ROW:
            return "death"
        if config.stall_steps and length - self._best_at_N[lane] >= config.stall_steps:
            return "stall"
        if config.max_steps and length >= config.max_steps:
            return "truncated"
        return None

    def _episode(self, lane: int, end: EpisodeEnd) -> Episode:
        return Episode(
            lane=lane,
            level="probe",
            world=0,
            stage=0,
            episode_return=float(self._clock.return_N[lane]),
            length=int(self._clock.length_N[lane]),
            x_pos_max=int(self._x_N[lane]),
            score=0,
            coins=0,
            time_left=0,
            life=0,
            status="small",
            flag_get=end == "flag",
            end=end,
            seconds=self._clock.seconds(lane),
            frames=int(self._clock.length_N[lane]) * self._config.frame_skip,
        )
