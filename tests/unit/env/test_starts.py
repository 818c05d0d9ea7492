"""Where episodes start: each of the 32 levels, as the game itself starts it."""

import numpy as np
import pytest
from gym_super_mario_bros import SuperMarioBrosEnv

from mario_dist.env import LEVELS, EnvConfig, MarioVectorEnv
from mario_dist.env.game import NORMAL_PLAYER, decode
from mario_dist.env.starts import level_start

RIGHT = (("right",),)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_starts_with_mario_under_control(level: str) -> None:
    config = EnvConfig(levels=(level,), actions=RIGHT, noop_max=0, frame_skip=15, stall_steps=0, max_steps=4)
    env = MarioVectorEnv(config, 1, (0,))
    frame = env.reset().copy()
    state = decode(env._lanes.emulators[0].ram[None])
    world, stage = (int(part) for part in level.split("-"))
    assert (int(state.world[0]), int(state.stage[0])) == (world, stage)
    assert state.player_state == NORMAL_PLAYER
    assert 36 <= int(state.x_pos[0]) <= 44
    assert state.time in (300, 400)
    assert state.life == 2
    assert state.status == 0
    assert state.score == 0
    assert not state.flag
    assert not state.dying
    assert frame[0, 12:].any(), "the picture is black"

    for t in range(4):
        step = env.step(np.array([0]))
        assert bool(step.truncated_N[0]) == (t == 3)
    (episode,) = step.ended
    assert (episode.level, episode.world, episode.stage) == (level, world, stage)
    assert episode.x_pos_max >= int(state.x_pos[0]) + 40, "holding right does not move Mario"
    env.close()


@pytest.mark.parametrize("level", ["1-2", "4-4", "6-2"])
def test_a_start_is_that_of_gym_super_mario_bros(level: str) -> None:
    world, stage = (int(part) for part in level.split("-"))
    package = SuperMarioBrosEnv(target=(world, stage))
    env = MarioVectorEnv(EnvConfig(levels=(level,)), 1, (0,))
    package.reset()
    env._lanes.emulators[0].load(level_start("auto", level))
    np.testing.assert_array_equal(env._lanes.emulators[0].ram, package.ram)
    package.close()
    env.close()
