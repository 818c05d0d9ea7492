"""Super Mario Bros. on N emulator lanes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mario_dist.emulator import RAM_BYTES, Emulator, make_emulator, new_grey
from mario_dist.env.actions import action_names, joypad_bytes
from mario_dist.env.config import EnvConfig
from mario_dist.env.game import STATUS_NAMES, GameState, decode
from mario_dist.env.observation import empty_frames, observe
from mario_dist.env.rewards import reward_fn
from mario_dist.env.starts import level_start
from mario_dist.env.vector import EpisodeClock, generator_state, lane_generators, restore_generator
from mario_dist.types import U8, Arrays, EnvSpec, EnvStep, Episode, EpisodeEnd

FrameCallback = Callable[[int, Emulator], None]
"""Called with (lane, emulator) after every emulator frame of a step; for videos."""


class MarioVectorEnv:
    """A ``VectorEnv`` of Super Mario Bros.; emulation runs on ``threads`` threads.

    ``seed`` is any sequence of integers that names this environment, such as (run seed, actor).
    """

    def __init__(
        self,
        config: EnvConfig,
        n_lanes: int,
        seed: Sequence[int],
        threads: int = 1,
        on_frame: FrameCallback | None = None,
    ) -> None:
        self._config = config
        self._spec = EnvSpec(
            config.frame_size, config.frame_stack, action_names(config.actions), config.frame_skip
        )
        self._joypad_A = joypad_bytes(config.actions)
        self._reward = reward_fn(config.reward, config.frame_skip)
        self._starts = [level_start(config.emulator, level) for level in config.levels]
        self._lanes = [make_emulator(config.emulator) for _ in range(n_lanes)]
        self._rngs = lane_generators(seed, n_lanes)
        self._on_frame = on_frame
        self._threads = max(1, min(threads, n_lanes))
        self._pool = ThreadPoolExecutor(self._threads, "lanes") if self._threads > 1 else None

        self._ram_NR = np.zeros((n_lanes, RAM_BYTES), dtype=np.uint8)
        self._frame_NHW = empty_frames(n_lanes, config.frame_size)
        self._greys = [new_grey() for _ in range(n_lanes)]
        self._level_N = np.zeros(n_lanes, dtype=np.int64)
        self._action_N = np.zeros(n_lanes, dtype=np.int64)
        self._best_at_N = np.zeros(n_lanes, dtype=np.int64)
        self._clock = EpisodeClock(n_lanes)
        self._state: GameState | None = None

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def n_lanes(self) -> int:
        return len(self._lanes)

    def reset(self) -> U8:
        self._each_lane(self._start_lane, range(self.n_lanes))
        self._state = decode(self._ram_NR)
        for lane in range(self.n_lanes):
            self._start_episode(lane)
        return self._frame_NHW

    def step(self, action_N: NDArray[np.int64]) -> EnvStep:
        assert self._state is not None, "reset() or restore() comes before step()"
        if self._config.sticky:
            repeat = [rng.random() < self._config.sticky for rng in self._rngs]
            action_N = np.where(repeat, self._action_N, action_N)
        self._action_N[:] = action_N
        self._each_lane(self._advance_lane, range(self.n_lanes))

        state = decode(self._ram_NR, self._state)
        reward_N = self._reward(self._state, state)
        self._clock.tick(reward_N)
        self._best_at_N = np.where(state.x_best > self._state.x_best, self._clock.length_N, self._best_at_N)
        ends = self._ends(state)
        truncated_N = np.array([end == "truncated" for end in ends])
        terminated_N = np.array([end is not None for end in ends]) & ~truncated_N

        lanes = [lane for lane, end in enumerate(ends) if end is not None]
        final_lane_F = np.array(lanes, dtype=np.int64)
        final_frame_FHW = self._frame_NHW[final_lane_F]
        ended = tuple(self._episode(state, lane, end) for lane, end in enumerate(ends) if end is not None)
        if lanes:
            self._each_lane(self._start_lane, lanes)
            state.set_lanes(final_lane_F, decode(self._ram_NR[final_lane_F]))
            for lane in lanes:
                self._start_episode(lane)
        self._state = state
        return EnvStep(
            self._frame_NHW, reward_N, terminated_N, truncated_N, final_frame_FHW, final_lane_F, ended
        )

    def state(self) -> Arrays:
        assert self._state is not None, "there is no state before reset()"
        arrays: Arrays = {
            **self._clock.state(),
            **self._state.to_arrays("game."),
            "frame": self._frame_NHW.copy(),
            "level": self._level_N.copy(),
            "action": self._action_N.copy(),
            "best_at": self._best_at_N.copy(),
        }
        for lane, (emulator, rng) in enumerate(zip(self._lanes, self._rngs, strict=True)):
            arrays[f"machine.{lane}"] = np.frombuffer(emulator.save(), dtype=np.uint8)
            arrays[f"rng.{lane}"] = generator_state(rng)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        self._clock.restore(arrays)
        self._state = GameState.from_arrays(arrays, "game.")
        self._frame_NHW[:] = arrays["frame"]
        self._level_N[:] = arrays["level"]
        self._action_N[:] = arrays["action"]
        self._best_at_N[:] = arrays["best_at"]
        self._each_lane(
            lambda lane: self._lanes[lane].load(arrays[f"machine.{lane}"].tobytes()), range(self.n_lanes)
        )
        for lane, rng in enumerate(self._rngs):
            restore_generator(rng, arrays[f"rng.{lane}"])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for emulator in self._lanes:
            emulator.close()

    def _each_lane(self, work: Callable[[int], None], lanes: Sequence[int]) -> None:
        """Do ``work`` for these lanes, on all threads: the emulator and OpenCV release the GIL."""
        if self._pool is None or len(lanes) < 2:
            for lane in lanes:
                work(lane)
            return
        # Consume the results, so that a failure in a thread is raised here.
        list(self._pool.map(work, lanes))

    def _advance_lane(self, lane: int) -> None:
        emulator = self._lanes[lane]
        joypad = int(self._joypad_A[self._action_N[lane]])
        for _ in range(self._config.frame_skip):
            emulator.step(joypad)
            if self._on_frame is not None:
                self._on_frame(lane, emulator)
        self._look(lane)

    def _start_lane(self, lane: int) -> None:
        emulator, rng = self._lanes[lane], self._rngs[lane]
        self._level_N[lane] = rng.integers(len(self._starts))
        emulator.load(self._starts[self._level_N[lane]])
        # One frame at least: the first frame that is seen is one that the machine drew.
        for _ in range(1 + int(rng.integers(self._config.noop_max + 1))):
            emulator.step(0)
        self._look(lane)

    def _look(self, lane: int) -> None:
        emulator, grey = self._lanes[lane], self._greys[lane]
        self._ram_NR[lane] = emulator.ram
        emulator.grey(grey)
        observe(grey, self._frame_NHW[lane], self._config.hud_rows)

    def _start_episode(self, lane: int) -> None:
        self._clock.restart(lane)
        self._best_at_N[lane] = 0
        self._action_N[lane] = 0

    def _ends(self, state: GameState) -> list[EpisodeEnd | None]:
        """How the episode of each lane ended in this step; where several apply, the first listed."""
        length, config = self._clock.length_N, self._config
        idle = length - self._best_at_N
        causes: tuple[tuple[EpisodeEnd, NDArray[np.bool_]], ...] = (
            ("flag", state.flag),
            ("time", state.dying & (state.time == 0)),
            ("death", state.dying),
            ("stall", (idle >= config.stall_steps) & (config.stall_steps > 0)),
            ("truncated", (length >= config.max_steps) & (config.max_steps > 0)),
        )
        return [
            next((end for end, happened in causes if happened[lane]), None) for lane in range(self.n_lanes)
        ]

    def _episode(self, state: GameState, lane: int, end: EpisodeEnd) -> Episode:
        return Episode(
            lane=lane,
            level=self._config.levels[self._level_N[lane]],
            world=int(state.world[lane]),
            stage=int(state.stage[lane]),
            episode_return=float(self._clock.return_N[lane]),
            length=int(self._clock.length_N[lane]),
            x_pos_max=int(state.x_best[lane]),
            score=int(state.score[lane]),
            coins=int(state.coins[lane]),
            time_left=int(state.time[lane]),
            life=int(state.life[lane]),
            status=STATUS_NAMES[state.status[lane]],
            flag_get=end == "flag",
            end=end,
            seconds=self._clock.seconds(lane),
        )
