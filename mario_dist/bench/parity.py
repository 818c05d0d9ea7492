"""Whether the native core and nes-py play the same game: each byte of RAM, each pixel, frame by frame."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np

from mario_dist import machine
from mario_dist.emulator import RAM_BYTES, Emulator, make_emulator, make_lanes
from mario_dist.env import LEVELS, EnvConfig, MarioVectorEnv
from mario_dist.env.starts import level_start
from mario_dist.types import EnvStep

POWER_ON, _RECORDED_LEVEL = "power-on", "1-1"
_MOST_FRAMES = 8
_START, _SELECT, _RIGHT, _LEFT = 0x08, 0x04, 0x80, 0x40
_ENV_STEPS_PER_FRAME = 1 / 40
_BACKENDS: tuple[Literal["native"], Literal["nes-py"]] = ("native", "nes-py")


def bench_parity(frames: int, seed: int, rom: str, announce: Callable[[str], None]) -> dict[str, Any]:
    """Play ``frames`` frames on both cores: from power-on, and from the start of each of the 32 levels.

    Joypads are random (all eight buttons), right-biased, and recorded from an agent's play. Beside them a
    native machine runs as in training, most frames undrawn, and its RAM is compared where it looks. Then both
    environments play the same actions, and frames, rewards, ends and episodes are compared.
    """
    at = time.perf_counter()
    native, reference = make_emulator("native", rom), make_emulator("nes-py", rom)
    undrawn = Undrawn(rom)
    share = frames // (len(LEVELS) + 1)
    places = {POWER_ON: frames - share * len(LEVELS), **dict.fromkeys(LEVELS, share)}
    rows = []
    for number, (place, count) in enumerate(places.items()):
        if place != POWER_ON:
            native.load(level_start("native", place, rom))
            reference.load(level_start("nes-py", place, rom))
        rows.append(_compare(native, undrawn, reference, place, count, (seed, number)))
        announce(f"{place}: {rows[-1]['frames']} frames, {rows[-1]['ram_differs']} with other RAM")
    env = _compare_envs(int(frames * _ENV_STEPS_PER_FRAME), seed, rom)
    equal = not any(row["ram_differs"] or row["picture_differs"] for row in rows) and not env["differ"]
    return {
        "machine": machine.describe(),
        "seed": seed,
        "equal": equal,
        "frames": sum(row["frames"] for row in rows),
        "looks_of_the_undrawn_machine": sum(row["looks"] for row in rows),
        "frames_with_other_ram": sum(row["ram_differs"] for row in rows),
        "frames_with_another_picture": sum(row["picture_differs"] for row in rows),
        "rows_of_pictures_that_differ": sum(row["picture_rows"] for row in rows),
        "env": env,
        "rows": rows,
        "seconds": time.perf_counter() - at,
    }


def joypads(seed: tuple[int, ...], place: str) -> Iterator[int]:
    """The buttons of each frame, without end: 300 frames random, 300 to the right, 300 recorded, and again.

    From power-on it goes into the game first; from 1-1 to the flag, as recorded.
    """
    rng = np.random.default_rng(seed)
    if place == POWER_ON:
        yield from [0] * 60 + [_START] * 3
    if place == _RECORDED_LEVEL:
        yield from _recording()
    for play in cycle((_random(rng), _to_the_right(rng), cycle(_recording()))):
        yield from islice(play, 300)


def _random(rng: np.random.Generator) -> Iterator[int]:
    while True:
        held = int(rng.integers(256))
        if rng.random() < 0.95:  # else the game would be paused half the time
            held &= ~_START
        yield from [held] * int(rng.integers(1, 12))


def _to_the_right(rng: np.random.Generator) -> Iterator[int]:
    while True:
        held = int(rng.integers(256)) & ~(_START | _SELECT)
        if rng.random() < 0.8:
            held = held & ~_LEFT | _RIGHT
        yield from [held] * int(rng.integers(1, 30))


def _recording() -> bytes:
    """An agent's play of level 1-1 from its start to the flag, one joypad byte a frame."""
    return resources.files(__package__).joinpath("play-1-1.joypads").read_bytes()


class Undrawn:
    """A lane that runs as in training: several frames a call, the last one drawn, its HUD masked."""

    def __init__(self, rom: str) -> None:
        self._lanes = make_lanes("native", 1, rom=rom, masked_rows=32, keep_pictures=False)
        self._ram = np.zeros((1, RAM_BYTES), dtype=np.uint8)
        self._frame = np.zeros((1, 84, 84), dtype=np.uint8)
        self._joypad, self._held = 0, 0

    def load(self, other: Emulator) -> None:
        self._lanes.emulators[0].load(other.save())
        self._held = 0

    def press(self, joypad: int) -> bytes | None:
        """One frame more with these buttons; where they changed, RAM after those before."""
        ram = None
        if self._held and (joypad != self._joypad or self._held == _MOST_FRAMES):
            frames = np.array([self._held])
            self._lanes.run(
                np.zeros(1, dtype=np.int64),
                np.array([self._joypad], dtype=np.uint8),
                frames,
                self._ram,
                self._frame,
            )
            ram, self._held = self._ram.tobytes(), 0
        self._joypad, self._held = joypad, self._held + 1
        return ram


def _compare(
    native: Emulator, undrawn: Undrawn, reference: Emulator, place: str, frames: int, seed: tuple[int, ...]
) -> dict[str, Any]:
    counts = {"frames": 0, "looks": 0, "ram_differs": 0, "picture_differs": 0, "picture_rows": 0}
    first: str | None = None
    undrawn.load(native)
    for joypad in islice(joypads(seed, place), frames):
        # The machine that runs as in training looks when the buttons change, before they do.
        if ram := undrawn.press(joypad):
            counts["looks"] += 1
            counts["ram_differs"] += ram != reference.ram.tobytes()
        native.step(joypad)
        reference.step(joypad)
        if not np.array_equal(native.ram, reference.ram):
            counts["ram_differs"] += 1
            where = np.flatnonzero(native.ram != reference.ram)
            first = first or f"frame {counts['frames']}, address {int(where[0]):#05x}"
        ours, theirs = native.rgb(), reference.rgb()
        if not np.array_equal(ours, theirs):
            counts["picture_differs"] += 1
            counts["picture_rows"] += int((ours != theirs).any(axis=(1, 2)).sum())
        counts["frames"] += 1
    return {"from": place, **counts, "first_difference": first}


def _compare_envs(steps: int, seed: int, rom: str) -> dict[str, Any]:
    """Both environments on the same actions; ``differ`` counts the steps that are not equal in all."""
    config = EnvConfig(levels=("1-1", "1-2", "4-1", "8-3"), actions="COMPLEX", stall_steps=60, rom=rom)
    ours, theirs = (
        MarioVectorEnv(replace(config, emulator=name), 4, (seed,), threads=2) for name in _BACKENDS
    )
    rng = np.random.default_rng(seed)
    differ = 0 if np.array_equal(ours.reset(), theirs.reset()) else 1
    episodes = 0
    for _ in range(max(1, steps // ours.n_lanes)):
        action_N = rng.integers(ours.spec.n_actions, size=ours.n_lanes)
        a, b = ours.step(action_N), theirs.step(action_N)
        differ += not _same(a, b) or not np.array_equal(ours._ram_NR, theirs._ram_NR)
        episodes += len(a.ended)
    steps = max(1, steps // ours.n_lanes) * ours.n_lanes
    ours.close()
    theirs.close()
    return {"agent_steps": steps, "episodes": episodes, "differ": differ}


def _same(a: EnvStep, b: EnvStep) -> bool:
    arrays = ("frame_NHW", "reward_N", "terminated_N", "truncated_N", "final_frame_FHW", "final_lane_F")
    if not all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays):
        return False
    return [replace(e, seconds=0.0) for e in a.ended] == [replace(e, seconds=0.0) for e in b.ended]
