"""The reference backend's own: states that are histories, remembered snapshots, and its threads."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from mario_dist.emulator import RAM_BYTES, Emulator, make_lanes, nes_py, new_grey
from mario_dist.emulator.nes_py import NesPyEmulator
from mario_dist.emulator.rom import rom_path
from mario_dist.env.starts import level_start

START, LEFT, RIGHT = 8, 64, 128
FRAME_COUNTER = 0x09


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process remember no snapshot, so that the next load plays the state from power-on."""
    monkeypatch.setattr(nes_py, "_snapshots", nes_py._SnapshotCache(64))


def in_level() -> NesPyEmulator:
    """A lane at the start of 1-1."""
    lane = NesPyEmulator(rom_path())
    lane.load(level_start("nes-py", "1-1"))
    return lane


def random_joypads(seed: int, frames: int) -> list[int]:
    """Buttons held for a while each, mostly to the right; never start or select, which would pause."""
    rng = np.random.default_rng(seed)
    joypads: list[int] = []
    while len(joypads) < frames:
        held = int(rng.integers(256)) & ~(START | 4)
        joypads += [held & ~LEFT | RIGHT if rng.random() < 0.7 else held] * int(rng.integers(1, 20))
    return joypads[:frames]


def play(lane: Emulator, joypads: list[int]) -> list[str]:
    """A digest of RAM and picture after each frame."""
    grey, digests = new_grey(), []
    for joypad in joypads:
        lane.step(joypad)
        lane.grey(grey)
        digests.append(hashlib.sha1(lane.ram.tobytes() + grey.tobytes()).hexdigest())
    return digests


def test_ram_stays_a_live_view_where_a_state_is_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = in_level()
    ram, start = lane.ram, lane.ram.copy()
    play(lane, [RIGHT] * 5)
    forget(monkeypatch)
    lane.load(level_start("nes-py", "1-1"))
    np.testing.assert_array_equal(ram, start)
    lane.step(0)
    assert (int(ram[FRAME_COUNTER]) - int(start[FRAME_COUNTER])) % 256 == 1


def test_a_state_played_again_is_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = in_level()
    play(lane, random_joypads(3, 300))
    lane.poke(0x7ED, 4)  # a poke is part of the history too
    state, ram = lane.save(), lane.ram.copy()
    joypads = random_joypads(4, 300)
    expected = play(lane, joypads)

    other = NesPyEmulator(rom_path())
    play(other, [START, 0] * 20)
    forget(monkeypatch)
    other.load(state)
    np.testing.assert_array_equal(other.ram, ram)
    assert other.save() == state
    assert play(other, joypads) == expected


DEAD_SOURCE = """
import gc
import numpy as np
from mario_dist.emulator import Emulator, make_emulator

def reach() -> Emulator:
    lane = make_emulator("nes-py")
    for joypad in [0] * 40 + [8, 0] * 60:
        lane.step(joypad)
    return lane

lane, witness = make_emulator("nes-py"), reach()
source = reach()
state = source.save()
source.close()
del source
gc.collect()
# Whatever was freed is something else now.
junk = [np.full(4096, 0xFF, np.uint8) for _ in range(5000)]
lane.load(state)
for _ in range(120):
    lane.step(128)
    witness.step(128)
print((lane.ram == witness.ram).all(), (lane.rgb() == witness.rgb()).all())
"""


def test_a_state_outlives_the_lane_that_saved_it() -> None:
    """nes-py's snapshots point into the cartridge of the core that took them. In a process of its own,
    because reading freed memory may end it."""
    command = [sys.executable, "-P", "-c", DEAD_SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True True\n"


def damaged(state: bytes) -> dict[str, bytes]:
    header = len(nes_py.MAGIC) + 8
    return {
        "another version": state[:7] + b"2" + state[8:],
        "another ROM": state[:8] + bytes(8) + state[16:],
        "cut in the header": state[: header - 1],
        "cut in a word": state[:-1],
        "no such word": state[:-4] + b"\xff\xff\xff\xff",
        "no such joypad": state[:-4] + b"\x00\x02\x00\x00",
        "no such address": state[:-4] + b"\x00\x00\x08\x01",
    }


@pytest.mark.parametrize("damage", damaged(bytes(16)))
def test_a_damaged_state_is_refused(damage: str) -> None:
    lane, witness = in_level(), in_level()
    state = lane.save()
    with pytest.raises(ValueError, match="nes-py"):
        lane.load(damaged(state)[damage])
    assert play(lane, [RIGHT] * 5) == play(witness, [RIGHT] * 5), "a refused load moved the machine"


def test_level_starts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is made once, is loaded without being played again, and is what playing it again gives."""
    state = level_start("nes-py", "1-1")
    assert level_start("nes-py", "1-1") is state
    lane = NesPyEmulator(rom_path())
    frames: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(NesPyEmulator, "step", lambda self, joypad: frames.append(joypad))
        lane.load(state)
        assert frames == []
        forget(patch)
        lane.load(state)
        assert len(frames) > 100
    quick, replayed = in_level(), NesPyEmulator(rom_path())
    forget(monkeypatch)
    replayed.load(state)
    joypads = random_joypads(9, 100)
    assert play(quick, joypads) == play(replayed, joypads)


def test_the_memory_of_snapshots_is_bounded() -> None:
    cache = nes_py._SnapshotCache(2)
    cache.put(b"a", 1)
    cache.put(b"b", 2)
    assert cache.get(b"a") == 1
    cache.put(b"c", 3)
    assert [cache.get(key) for key in (b"a", b"b", b"c")] == [1, None, 3]


def test_a_closed_lane_is_not_used_again() -> None:
    lane = in_level()
    lane.close()
    with pytest.raises(ValueError, match="closed"):
        lane.step(0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_of_a_lane_stops_all(threads: int) -> None:
    lanes = make_lanes("nes-py", 2, threads=threads)
    lanes.emulators[1].close()
    ram_NR, frame_NHW = np.zeros((2, RAM_BYTES), np.uint8), np.zeros((2, 84, 84), np.uint8)
    with pytest.raises(ValueError, match="closed"):
        lanes.run(np.arange(2), np.zeros(2, np.uint8), np.ones(2, np.int64), ram_NR, frame_NHW)
