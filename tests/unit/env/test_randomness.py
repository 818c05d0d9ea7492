"""No-op starts, drawn levels and sticky actions of the real game."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mario_dist.emulator import make_emulator
from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.game import decode
from mario_dist.env.starts import level_start


def frames_in(env: MarioVectorEnv, level: str = "1-1") -> list[int]:
    """How many frames after the saved start each lane is."""
    lane = make_emulator("auto")
    lane.load(level_start("auto", level))
    return [(int(emulator.ram[0x09]) - int(lane.ram[0x09])) % 256 for emulator in env._lanes.emulators]


def starts(noop_max: int, seed: Sequence[int], resets: int = 4) -> list[int]:
    env = MarioVectorEnv(EnvConfig(noop_max=noop_max), 8, seed)
    counts: list[int] = []
    for _ in range(resets):
        env.reset()
        counts += frames_in(env)
    env.close()
    return counts


def test_starts_are_after_random_no_ops() -> None:
    counts = starts(noop_max=12, seed=(1,))
    assert min(counts) >= 1
    assert max(counts) <= 13
    assert len(set(counts)) >= 8
    assert counts == starts(noop_max=12, seed=(1,))
    assert counts != starts(noop_max=12, seed=(2,))
    assert counts[:8] != counts[8:16], "every episode starts alike"


def test_the_number_of_no_ops_reaches_both_ends() -> None:
    assert set(starts(noop_max=1, seed=(0,))) == {1, 2}
    assert set(starts(noop_max=0, seed=(0,), resets=1)) == {1}


def test_levels_are_drawn_for_each_episode() -> None:
    levels = ("1-1", "2-1", "5-2")
    env = MarioVectorEnv(EnvConfig(levels=levels, noop_max=0, frame_skip=1, max_steps=1), 4, (0,))
    env.reset()
    seen: list[str] = []
    for _ in range(12):
        state = decode(np.stack([emulator.ram for emulator in env._lanes.emulators]))
        names = [f"{world}-{stage}" for world, stage in zip(state.world, state.stage, strict=True)]
        step = env.step(np.zeros(4, dtype=np.int64))
        assert [episode.level for episode in step.ended] == names
        assert [f"{episode.world}-{episode.stage}" for episode in step.ended] == names
        seen += names
    env.close()
    assert set(seen) == set(levels)
    assert min(seen.count(level) for level in levels) >= 5


def sticky_run(sticky: float, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What was asked for and what was pressed, as the game itself noted it: [steps, lanes]."""
    presses = (("right",), ("left",), ("A",), ("B",), ("down",), ("up",))
    pressed: list[int] = []
    config = EnvConfig(actions=presses, frame_skip=1, sticky=sticky, stall_steps=0, max_steps=0, noop_max=0)
    env = MarioVectorEnv(
        config, 4, (0,), on_frame=lambda _, emulator: pressed.append(int(emulator.ram[0x6FC]))
    )
    env.reset()
    actions = np.random.default_rng(9).integers(len(presses), size=(steps, 4))
    for action_N in actions:
        env.step(action_N)
    env.close()
    # The game keeps the buttons in the console's order: A, B, select, start, up, down, left, right.
    of_byte = {0x01: 0, 0x02: 1, 0x80: 2, 0x40: 3, 0x04: 4, 0x08: 5}
    return actions, np.array([of_byte[byte] for byte in pressed]).reshape(steps, 4)


def test_sticky_actions_repeat_at_about_their_probability() -> None:
    asked, pressed = sticky_run(0.3, 300)
    before = np.concatenate([np.zeros((1, 4), dtype=np.int64), pressed[:-1]])
    assert ((pressed == asked) | (pressed == before)).all()
    tellable = asked != before
    repeated = (pressed == before)[tellable]
    assert len(repeated) > 800
    assert abs(repeated.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(repeated))
    runs = ["".join("01"[int(r)] for r in column) for column in (pressed != asked).T]
    assert len(set(runs)) == 4, "lanes stick together"


def test_without_sticky_actions_what_is_asked_is_pressed() -> None:
    asked, pressed = sticky_run(0.0, 40)
    np.testing.assert_array_equal(asked, pressed)
