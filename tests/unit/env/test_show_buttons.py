"""What a lane pressed, drawn into its picture."""

import dataclasses

import numpy as np
import pytest

from mario_dist.env import EnvConfig, MarioVectorEnv

CONFIG = EnvConfig(show_buttons=True, noop_max=0, stall_steps=0, max_steps=6)
# In the joypad's order: A, B, select, start, up, down, left, right, each 10 of 84 columns wide.
PRESSED = {0: [], 1: [7], 2: [0, 7], 4: [0, 1, 7], 6: [6]}


def test_the_buttons_of_the_step_are_in_the_black_rows_and_nothing_else_changes() -> None:
    env = MarioVectorEnv(CONFIG, 2, (0,))
    plain = MarioVectorEnv(dataclasses.replace(CONFIG, show_buttons=False), 2, (0,))
    np.testing.assert_array_equal(env.reset(), plain.reset())
    for action, blocks in PRESSED.items():
        action_N = np.array([action, 1])
        shown, bare = env.step(action_N).frame_NHW.copy(), plain.step(action_N).frame_NHW.copy()
        assert (bare[:, :11] == 0).all()
        np.testing.assert_array_equal(shown[:, 11:], bare[:, 11:])
        for lane, expected in enumerate((blocks, [7])):
            row = shown[lane, 0]
            assert (shown[lane, :11] == row).all()
            lit = [block for block in range(8) if (row[10 * block : 10 * block + 10] == 255).all()]
            assert lit == expected
            assert (row == 255).sum() == 10 * len(expected)
    env.close()
    plain.close()


def test_the_first_frame_of_an_episode_shows_none_and_the_last_one_those_that_ended_it() -> None:
    env = MarioVectorEnv(CONFIG, 1, (0,))
    env.reset()
    for _ in range(6):
        step = env.step(np.array([1]))
    assert step.truncated_N.all()
    assert (step.frame_NHW[0, :11] == 0).all()
    assert (step.final_frame_FHW[0, 0, 70:80] == 255).all()
    env.close()


def test_there_must_be_a_place_to_draw_them() -> None:
    with pytest.raises(ValueError, match="show_buttons"):
        EnvConfig(show_buttons=True, hud_rows=0)
    with pytest.raises(ValueError, match="show_buttons"):
        EnvConfig(show_buttons=True, frame_size=(84, 7))
