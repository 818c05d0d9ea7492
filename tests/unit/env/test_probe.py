"""The corridor that stands in for the game: its own rules."""

import dataclasses

import numpy as np
import pytest

from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.env.probe import LENGTH
from mario_dist.types import EnvStep

PROBE = EnvConfig(kind="probe", frame_size=(12, 21), stall_steps=0, max_steps=9)


def test_autoreset_of_the_probe() -> None:
    """The walker's place is in the last row: at the start in the next frame, at its last in the final one."""
    env = ProbeVectorEnv(dataclasses.replace(PROBE, max_steps=0), 2, (0,))
    env.reset()
    for _ in range(LENGTH - 1):
        step = env.step(np.array([env._answer_N[0], env._answer_N[0]]))
    assert step.frame_NHW[0, -1, LENGTH - 1] == 64
    step = env.step(env._answer_N.copy())
    assert step.final_lane_F[0] == 0
    assert step.final_frame_FHW[0, -1, LENGTH] == 64
    assert step.frame_NHW[0, -1, 0] == 64
    assert np.count_nonzero(step.frame_NHW[0, -1]) == 1
    assert step.ended[0].end == "flag"
    assert step.ended[0].x_pos_max == LENGTH
    assert step.ended[0].episode_return == LENGTH + 5


def probe(**changes: object) -> ProbeVectorEnv:
    config = dataclasses.replace(PROBE, **{"max_steps": 0, **changes})  # type: ignore[arg-type]
    env = ProbeVectorEnv(config, 1, (0,))
    env.reset()
    return env


def test_the_probe_shows_which_action_walks_on() -> None:
    env = probe()
    frame = env.reset()[0]
    for t in range(15):
        bright = np.flatnonzero((frame == 255).all(axis=1))
        assert len(bright) == 1
        step = env.step(bright)
        frame = step.frame_NHW[0]
        assert step.reward_N[0] == 1.0
        assert frame[-1].max() == 64
        assert frame[-1].argmax() == t + 1


def test_three_wrong_answers_in_a_row_are_a_death() -> None:
    env = probe()

    def answer(right: bool) -> EnvStep:
        return env.step((env._answer_N + (0 if right else 1)) % 7)

    for right in (False, False, True, False, False):
        step = answer(right)
        assert not step.ended
        assert step.reward_N[0] == right
    (episode,) = answer(False).ended
    assert (episode.end, episode.length, episode.x_pos_max, episode.episode_return) == ("death", 6, 1, 1.0)


def test_the_probe_honours_its_limits() -> None:
    for change, end in (({"max_steps": 2}, "truncated"), ({"stall_steps": 2}, "stall")):
        env = probe(**change)
        env.step((env._answer_N + 1) % 7)
        step = env.step((env._answer_N + 1) % 7)
        assert [(e.end, e.length) for e in step.ended] == [(end, 2)]


def test_the_probes_smallest_frame() -> None:
    env = probe(frame_size=(7, 2))
    for action_N in np.random.default_rng(0).integers(7, size=(60, 1)):
        env.step(action_N)
    for size in ((6, 2), (7, 1)):
        with pytest.raises(ValueError, match="at least 7 rows and 2 columns"):
            probe(frame_size=size)
