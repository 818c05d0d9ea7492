"""The native core beside nes-py: the same RAM and the same picture, on every frame."""

import dataclasses
from typing import Literal

import numpy as np
import pytest

from mario_dist.emulator import RAM_BYTES, Emulator, make_emulator, make_lanes, new_grey
from mario_dist.env import LEVELS, EnvConfig, MarioVectorEnv
from mario_dist.env.starts import level_start

START, RIGHT, LEFT = 8, 128, 64


def random_joypads(seed: int, frames: int, right: float) -> list[int]:
    """Buttons held for a while each, all eight of them: with this probability to the right."""
    rng = np.random.default_rng(seed)
    joypads: list[int] = []
    while len(joypads) < frames:
        held = int(rng.integers(256))
        if rng.random() < 0.9:
            held &= ~START  # else it is paused half the time
        if rng.random() < right:
            held = held & ~LEFT | RIGHT
        joypads += [held] * int(rng.integers(1, 20))
    return joypads[:frames]


def both() -> tuple[Emulator, Emulator]:
    return make_emulator("native"), make_emulator("nes-py")


def assert_equal_play(native: Emulator, reference: Emulator, joypads: list[int]) -> None:
    """RAM and picture after each frame; and that there was something to see."""
    native_grey, reference_grey, seen = new_grey(), new_grey(), set()
    for frame, joypad in enumerate(joypads):
        native.step(joypad)
        reference.step(joypad)
        differ = np.flatnonzero(native.ram != reference.ram)
        assert not len(differ), f"frame {frame}: RAM differs at {[hex(at) for at in differ]}"
        picture, expected = native.rgb(), reference.rgb()
        if not np.array_equal(picture, expected):
            rows = np.flatnonzero((picture != expected).any(axis=(1, 2)))
            raise AssertionError(f"frame {frame}: the picture differs in rows {rows}")
        seen.add(picture.tobytes()[::31])
    native.grey(native_grey)
    reference.grey(reference_grey)
    np.testing.assert_array_equal(native_grey, reference_grey)
    assert len(seen) > len(joypads) / 6, "the picture stands still"


def test_from_power_on() -> None:
    native, reference = both()
    joypads = [0] * 40 + [START, 0] + random_joypads(0, 1458, right=0.3)
    assert_equal_play(native, reference, joypads)
    assert native.ram[0x770] == 1, "no game was started"


@pytest.mark.parametrize("level", LEVELS)
def test_from_each_levels_start(level: str) -> None:
    native, reference = both()
    native.load(level_start("native", level))
    reference.load(level_start("nes-py", level))
    np.testing.assert_array_equal(native.ram, reference.ram)
    assert_equal_play(native, reference, random_joypads(LEVELS.index(level), 150, right=0.8))


@pytest.mark.parametrize("keep_pictures", [True, False])
def test_where_only_some_frames_are_drawn(keep_pictures: bool) -> None:
    """What a policy sees: the last frame of several, of lanes that are run together."""
    levels = ("1-1", "2-2", "3-3", "4-4", "8-1")
    rng, n = np.random.default_rng(1), len(levels)
    rams = np.zeros((2, n, RAM_BYTES), dtype=np.uint8)
    frames = np.zeros((2, n, 84, 84), dtype=np.uint8)
    lanes = [
        make_lanes(backend, n, masked_rows=32, keep_pictures=keep_pictures, threads=2)
        for backend in ("native", "nes-py")
    ]
    for backend, machines in zip(("native", "nes-py"), lanes, strict=True):
        for level, machine in zip(levels, machines.emulators, strict=True):
            machine.load(level_start(backend, level))
    joypads = np.array([random_joypads(lane, 60, right=0.7) for lane in range(n)], dtype=np.uint8)
    for t, joypad_N in enumerate(joypads.T):
        frames_N = np.full(n, 4) if t % 2 else rng.integers(1, 9, size=n)
        for machines, ram, frame in zip(lanes, rams, frames, strict=True):
            machines.run(np.arange(n), joypad_N, frames_N, ram, frame)
        np.testing.assert_array_equal(rams[0], rams[1])
        np.testing.assert_array_equal(frames[0], frames[1])
    assert len({frame.tobytes() for frame in frames[0]}) == n
    for machines in lanes:
        machines.close()


@pytest.mark.parametrize("reward", ["progress", "native"])
def test_environments_are_the_same(reward: Literal["progress", "native"]) -> None:
    """Frames, rewards, ends and records of the same actions; with resets and all that is random."""
    config = EnvConfig(
        levels=("1-1", "2-2", "4-1", "7-4", "8-3"),
        reward=reward,
        sticky=0.1,
        noop_max=8,
        stall_steps=16,
        max_steps=45,
    )
    n, ends, rewards = 4, [], 0.0
    native, reference = (
        MarioVectorEnv(dataclasses.replace(config, emulator=backend), n, (3,), threads=2)
        for backend in ("native", "nes-py")
    )
    np.testing.assert_array_equal(native.reset(), reference.reset())
    rng = np.random.default_rng(2)
    for _ in range(200):
        action_N = np.where(rng.random(n) < 0.6, rng.integers(1, 5, size=n), rng.integers(7, size=n))
        a, b = native.step(action_N), reference.step(action_N)
        for field in dataclasses.fields(a):
            if field.name != "ended":
                np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)
        assert [dataclasses.replace(e, seconds=0) for e in a.ended] == [
            dataclasses.replace(e, seconds=0) for e in b.ended
        ]
        ends += [episode.end for episode in a.ended]
        rewards += float(np.abs(a.reward_N).sum())
    assert len(ends) > 15
    assert {"death", "stall", "truncated"} <= set(ends)
    assert rewards > 100
    native.close()
    reference.close()
