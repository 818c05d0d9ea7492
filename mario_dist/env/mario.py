"""Super Mario Bros. on N emulator lanes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mario_dist.emulator import RAM_BYTES, Emulator, make_lanes
from mario_dist.env.actions import action_names, joypad_bytes
from mario_dist.env.config import EnvConfig
from mario_dist.env.game import STATUS_NAMES, GameState, decode, in_warp_zone
from mario_dist.env.rewards import reward_fn
from mario_dist.env.rewind import EVERY, Moment, Moments
from mario_dist.env.starts import level_start
from mario_dist.env.vector import EpisodeClock, generator_state, lane_generators, restore_generator
from mario_dist.types import I32, I64, U8, Arrays, EnvSpec, EnvStep, Episode, EpisodeEnd, part

_ENDS: tuple[EpisodeEnd, ...] = ("flag", "time", "death", "astray", "stall", "truncated")
_FLAG, _TIME, _DEATH, _ASTRAY, _STALL, _TRUNCATED = range(len(_ENDS))
_GOES_ON = -1
_TRANSITION_FRAMES = 1200
"""No way to another area takes longer."""

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
        self._starts = [level_start(config.emulator, level, config.rom) for level in config.levels]
        self._number_L = np.array([10 * int(level[0]) + int(level[2]) for level in config.levels])
        self._lanes = make_lanes(
            config.emulator,
            n_lanes,
            rom=config.rom,
            frame_size=config.frame_size,
            masked_rows=config.hud_rows,
            threads=threads,
            keep_pictures=on_frame is not None,
        )
        self._rngs = lane_generators(seed, n_lanes)
        self._on_frame = on_frame

        self._all_lanes_N = np.arange(n_lanes)
        self._ram_NR = np.zeros((n_lanes, RAM_BYTES), dtype=np.uint8)
        self._frame_NHW = np.zeros((n_lanes, *config.frame_size), dtype=np.uint8)
        self._level_N = np.zeros(n_lanes, dtype=np.int64)
        self._action_N = np.zeros(n_lanes, dtype=np.int64)
        self._best_at_N = np.zeros(n_lanes, dtype=np.int64)
        self._clock = EpisodeClock(n_lanes)
        self._buttons_AHW = _button_blocks(config, self._joypad_A) if config.show_buttons else None
        self._moments = Moments(n_lanes)
        self._practises_N = np.zeros(n_lanes, dtype=np.bool_)
        self._state: GameState | None = None

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def n_lanes(self) -> int:
        return len(self._rngs)

    @property
    def action_N(self) -> I64:
        """The actions of the newest step as pressed: with ``sticky``, not always those asked for."""
        return self._action_N

    @property
    def x_pos_N(self) -> I32:
        """Where Mario stood at the end of the newest step, in pixels, rebased over sub-areas."""
        assert self._state is not None, "nobody stands anywhere before reset()"
        return self._state.x_pos

    def reset(self) -> U8:
        self._state = self._start_lanes(self._all_lanes_N, {})
        return self._frame_NHW

    def step(self, action_N: NDArray[np.int64]) -> EnvStep:
        assert self._state is not None, "reset() or restore() comes before step()"
        if self._config.sticky:
            repeat = [rng.random() < self._config.sticky for rng in self._rngs]
            action_N = np.where(repeat, self._action_N, action_N)
        self._action_N[:] = action_N
        state = self._advance(self._state)
        reward_N = self._reward(self._state, state)
        self._clock.tick(reward_N)
        self._best_at_N = np.where(state.x_best > self._state.x_best, self._clock.length_N, self._best_at_N)
        end_N = self._ends(self._state, state)
        final_lane_F = np.flatnonzero(end_N != _GOES_ON)
        truncated_N = end_N == _TRUNCATED
        terminated_N = (end_N != _GOES_ON) & ~truncated_N
        final_frame_FHW = self._frame_NHW[final_lane_F]
        ended = tuple(
            self._episode(state, lane, _ENDS[end_N[lane]])
            for lane in final_lane_F.tolist()
            if not self._practises_N[lane]
        )
        if final_lane_F.size:
            rewound = self._rewound(np.flatnonzero(end_N == _DEATH))
            state.set_lanes(final_lane_F, self._start_lanes(final_lane_F, rewound))
        if self._config.rewind:
            self._keep_moments(state)
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
            "practises": self._practises_N.copy(),
            **{f"moments.{name}": array for name, array in self._moments.state().items()},
        }
        for lane, (emulator, rng) in enumerate(zip(self._lanes.emulators, self._rngs, strict=True)):
            arrays[f"machine.{lane}"] = np.frombuffer(emulator.save(), dtype=np.uint8)
            arrays[f"rng.{lane}"] = generator_state(rng)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        self._clock.restore(arrays, self._config.frame_skip)
        self._state = GameState.from_arrays(arrays, "game.")
        self._frame_NHW[:] = arrays["frame"]
        self._level_N[:] = arrays["level"]
        self._action_N[:] = arrays["action"]
        self._best_at_N[:] = arrays["best_at"]
        self._practises_N[:] = arrays.get("practises", False)  # checkpoints from before it have none
        self._moments.restore(part(arrays, "moments."))
        for lane, (emulator, rng) in enumerate(zip(self._lanes.emulators, self._rngs, strict=True)):
            emulator.load(arrays[f"machine.{lane}"].tobytes())
            restore_generator(rng, arrays[f"rng.{lane}"])

    def close(self) -> None:
        self._lanes.close()

    def _advance(self, previous: GameState) -> GameState:
        """Press the buttons of the actions for a step, and say what became of the game."""
        self._press(self._all_lanes_N)
        state = decode(self._ram_NR, previous)
        if self._config.skip_transitions:
            for _ in range(_TRANSITION_FRAMES // self._config.frame_skip):
                lane_M = np.flatnonzero(state.in_transition)
                if not lane_M.size:
                    break
                self._press(lane_M)
                state = decode(self._ram_NR, state)
        if self._buttons_AHW is not None:
            rows = self._buttons_AHW.shape[1]
            self._frame_NHW[:, :rows] = self._buttons_AHW[self._action_N]
        return state

    def _press(self, lane_M: NDArray[np.int64]) -> None:
        """The frames of one step, in these lanes."""
        joypad_M = self._joypad_A[self._action_N[lane_M]]
        self._clock.frames_N[lane_M] += self._config.frame_skip
        if self._on_frame is None:
            self._run(lane_M, joypad_M, np.full(len(lane_M), self._config.frame_skip))
            return
        # Somebody watches: one frame at a time, each of them drawn.
        for _ in range(self._config.frame_skip):
            self._run(lane_M, joypad_M, np.ones(len(lane_M), dtype=np.int64))
            for lane in lane_M.tolist():
                self._on_frame(lane, self._lanes.emulators[lane])

    def _start_lanes(self, lane_F: NDArray[np.int64], rewound: Mapping[int, Moment]) -> GameState:
        """Start an episode in these lanes, at a level's start or where they were ``rewound`` to."""
        # One frame at least: the first frame that is seen is one that the machine drew.
        frames_F = np.ones_like(lane_F)
        for i, lane in enumerate(lane_F.tolist()):
            moment, emulator = rewound.get(lane), self._lanes.emulators[lane]
            if moment is not None:
                emulator.load(moment.machine)
            else:
                rng = self._rngs[lane]
                self._level_N[lane] = rng.integers(len(self._starts))
                emulator.load(self._starts[self._level_N[lane]])
                frames_F[i] += rng.integers(self._config.noop_max + 1)
                self._moments.forget(lane)
            self._practises_N[lane] = moment is not None
            self._clock.restart(lane)
            self._best_at_N[lane] = self._action_N[lane] = 0
        self._run(lane_F, np.zeros(len(lane_F), dtype=np.uint8), frames_F)
        state = decode(self._ram_NR[lane_F])
        for i, lane in enumerate(lane_F.tolist()):
            if lane in rewound:
                state.set_lanes(np.array([i]), decode(self._ram_NR[lane : lane + 1], rewound[lane].game))
        return state

    def _rewound(self, lane_D: NDArray[np.int64]) -> dict[int, Moment]:
        """Which of these lanes, in which Mario died, go back, and where to."""
        rewound: dict[int, Moment] = {}
        if self._config.rewind:
            for lane in lane_D.tolist():
                rng = self._rngs[lane]
                if rng.random() < self._config.rewind and (moment := self._moments.go_back(lane, rng)):
                    rewound[lane] = moment
        return rewound

    def _keep_moments(self, state: GameState) -> None:
        for lane in np.flatnonzero(self._clock.length_N % EVERY == EVERY - 1).tolist():
            self._moments.keep(lane, Moment(self._lanes.emulators[lane].save(), state.lane(lane)))

    def _run(self, lane_M: NDArray[np.int64], joypad_M: U8, frames_M: NDArray[np.int64]) -> None:
        self._lanes.run(lane_M, joypad_M, frames_M, self._ram_NR, self._frame_NHW)

    def _ends(self, previous: GameState, state: GameState) -> NDArray[np.int64]:
        """How the episode of each lane ended in this step, an index of ``_ENDS``: the first that applies."""
        length, config = self._clock.length_N, self._config
        end_N = np.full(self.n_lanes, _GOES_ON)
        if config.max_steps:
            end_N[length >= config.max_steps] = _TRUNCATED
        if config.stall_steps:
            end_N[length - self._best_at_N >= config.stall_steps] = _STALL
        if config.end_astray:
            end_N[state.looped(previous) | in_warp_zone(self._ram_NR)] = _ASTRAY
        end_N[state.dying] = _DEATH
        end_N[state.dying & (state.time == 0)] = _TIME
        end_N[state.flag] = _FLAG
        # Who took a warp zone's pipe has cleared another level.
        here_N = (state.world * 10 + state.stage) == self._number_L[self._level_N]
        end_N[state.flag & ~here_N] = _ASTRAY
        return end_N

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
            frames=int(self._clock.frames_N[lane]),
        )


def _button_blocks(config: EnvConfig, joypad_A: U8) -> U8:
    """What is drawn into the blackened rows for each action: uint8 [A, rows, W], a block for each button."""
    rows = config.hud_rows * config.frame_size[0] // 240
    width = config.frame_size[1] // 8
    blocks_AHW = np.zeros((len(joypad_A), rows, config.frame_size[1]), dtype=np.uint8)
    held_A8 = np.unpackbits(joypad_A[:, None], axis=1, bitorder="little")
    blocks_AHW[:, :, : 8 * width] = np.repeat(held_A8, width, axis=1)[:, None] * np.uint8(255)
    return blocks_AHW
