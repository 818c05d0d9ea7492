"""The way to another area, with and without its idle steps: the real game, sent into pipes."""

from collections.abc import Iterator

import numpy as np
import pytest

from mario_dist.emulator import Emulator
from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.game import NORMAL_PLAYER

SIDE_PIPE, PIPE_BELOW = 2, 3
RIGHT = 1


def mario(n_lanes: int = 1, **settings: object) -> MarioVectorEnv:
    """Lanes that have walked a little."""
    fixed = {"noop_max": 0, "frame_skip": 8, "frame_size": (60, 64), "show_buttons": True}
    env = MarioVectorEnv(EnvConfig(**{**fixed, **settings}), n_lanes, (0,))  # type: ignore[arg-type]
    env.reset()
    for _ in range(10):
        env.step(np.full(n_lanes, RIGHT))
    return env


def send(env: MarioVectorEnv, lane: int, pipe: int) -> None:
    env._lanes.emulators[lane].poke(0x0E, pipe)


def states(env: MarioVectorEnv, lane: int = 0) -> Iterator[int]:
    """Who has control of Mario after each further step to the right."""
    while True:
        env.step(np.full(env.n_lanes, RIGHT))
        assert env._state is not None
        yield int(env._state.player_state[lane])


@pytest.mark.parametrize("pipe", [SIDE_PIPE, PIPE_BELOW])
def test_skipped_they_are_the_same_game(pipe: int) -> None:
    watched, skipped = mario(), mario(skip_transitions=True)
    before = int(watched.x_pos_N[0])
    for env in (watched, skipped):
        send(env, 0, pipe)
    assert next(states(skipped)) == NORMAL_PLAYER
    steps = 1 + next(step for step, state in enumerate(states(watched)) if state == NORMAL_PLAYER)
    assert steps > 30
    np.testing.assert_array_equal(skipped._ram_NR, watched._ram_NR)
    np.testing.assert_array_equal(skipped._frame_NHW, watched._frame_NHW)
    assert skipped.x_pos_N.tolist() == watched.x_pos_N.tolist()
    assert abs(int(skipped.x_pos_N[0]) - before) <= 3 * 8, "another area is no progress"
    assert int(skipped._clock.length_N[0]) == 11
    assert int(watched._clock.length_N[0]) == 10 + steps
    assert skipped._clock.frames_N.tolist() == watched._clock.frames_N.tolist() == [8 * (10 + steps)]
    assert skipped._clock.return_N[0] == pytest.approx(watched._clock.return_N[0])


def test_the_lanes_beside_it_take_one_step() -> None:
    alone, beside = mario(), mario(3, skip_transitions=True)
    send(beside, 1, SIDE_PIPE)
    for _ in range(5):
        alone.step(np.array([RIGHT]))
        beside.step(np.full(3, RIGHT))
        for lane in (0, 2):
            np.testing.assert_array_equal(beside._ram_NR[lane], alone._ram_NR[0])
            np.testing.assert_array_equal(beside._frame_NHW[lane], alone._frame_NHW[0])
    assert beside._clock.length_N.tolist() == [15, 15, 15]
    frames_N = beside._clock.frames_N.tolist()
    assert frames_N[0] == frames_N[2] == 15 * 8 < frames_N[1] - 200


def test_who_watches_sees_every_frame_of_it() -> None:
    seen = [0, 0]

    def on_frame(lane: int, emulator: Emulator) -> None:
        seen[lane] += 1

    config = EnvConfig(noop_max=0, frame_skip=8, skip_transitions=True)
    env, unseen = MarioVectorEnv(config, 2, (0,), on_frame=on_frame), MarioVectorEnv(config, 2, (0,))
    for each in (env, unseen):
        each.reset()
        send(each, 0, SIDE_PIPE)
        each.step(np.array([RIGHT, RIGHT]))
    assert seen[0] > 30 * 8
    assert seen[0] % 8 == 0
    assert seen[1] == 8
    np.testing.assert_array_equal(env._ram_NR, unseen._ram_NR)
    np.testing.assert_array_equal(env._frame_NHW, unseen._frame_NHW)
