"""The reference backend: deterministic lanes whose states go on anywhere, bit for bit."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from mario_dist.emulator import RAM_BYTES, SCREEN_SHAPE, Emulator, make_emulator, nes_py, new_grey
from mario_dist.emulator.nes_py import NesPyEmulator
from mario_dist.env.starts import level_start

START, LEFT, RIGHT = 8, 64, 128
FRAME_COUNTER = 0x09


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process remember no snapshot, so that the next load plays the state from power-on."""
    monkeypatch.setattr(nes_py, "_snapshots", nes_py._SnapshotCache(64))


def in_level() -> NesPyEmulator:
    """A lane at the start of 1-1."""
    lane = NesPyEmulator()
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


def test_two_lanes_do_the_same_from_power_on() -> None:
    a, b = NesPyEmulator(), NesPyEmulator()
    joypads = [0] * 40 + [START, 0] * 80 + random_joypads(0, 200)
    digests = play(a, joypads)
    assert digests == play(b, joypads)
    assert len(set(digests)) > 300, "the machine stands still"


def test_what_a_lane_does_depends_on_its_buttons() -> None:
    assert play(in_level(), [RIGHT] * 30) != play(in_level(), [0] * 30)


def test_lanes_on_two_threads_at_once_do_what_they_do_alone() -> None:
    plans = [random_joypads(1, 400), random_joypads(2, 400)]
    alone = [play(in_level(), plan) for plan in plans]
    lanes, together = [in_level(), in_level()], Barrier(2)

    def work(i: int) -> list[str]:
        together.wait()
        return play(lanes[i], plans[i])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == alone
    assert alone[0] != alone[1]


def test_ram_is_a_live_view_of_the_machine() -> None:
    lane = in_level()
    ram = lane.ram
    assert ram.shape == (RAM_BYTES,)
    assert ram.dtype == np.uint8
    before = int(ram[FRAME_COUNTER])
    lane.step(0)
    assert int(ram[FRAME_COUNTER]) == (before + 1) % 256
    lane.poke(0x7ED, 7)
    assert ram[0x7ED] == 7


def test_ram_stays_a_live_view_over_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = in_level()
    ram = lane.ram
    for frames, prepare in enumerate((lambda: None, lambda: forget(monkeypatch))):
        prepare()
        lane.load(level_start("nes-py", "1-1"))
        play(lane, [RIGHT] * (5 + frames))
        np.testing.assert_array_equal(ram, lane.ram)


def test_each_joypad_bit_is_its_button() -> None:
    """The game keeps the buttons in the console's own order, A highest."""
    lane = in_level()
    for bit in (0, 1, 4, 5, 6, 7):  # without select and start
        lane.step(1 << bit)
        assert lane.ram[0x6FC] == 0x80 >> bit


def test_a_loaded_lane_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the snapshot, and played again from power-on."""
    lane = in_level()
    play(lane, random_joypads(3, 300))
    lane.poke(0x7ED, 4)  # a poke is part of the history too
    state, ram, picture = lane.save(), lane.ram.copy(), lane.rgb()
    joypads = random_joypads(4, 1100)
    expected = play(lane, joypads)
    assert len(set(expected)) > 200, "the machine stands still"

    other = NesPyEmulator()
    for prepare in (lambda: None, lambda: forget(monkeypatch)):
        play(other, [START, 0] * 20)
        prepare()
        other.load(state)
        np.testing.assert_array_equal(other.ram, ram)
        np.testing.assert_array_equal(other.rgb(), picture)
        assert other.save() == state
        assert play(other, joypads) == expected


def test_a_lane_goes_back_to_its_own_state() -> None:
    lane = in_level()
    play(lane, random_joypads(5, 100))
    state = lane.save()
    joypads = random_joypads(6, 100)
    first = play(lane, joypads)
    lane.load(state)
    assert play(lane, joypads) == first
    after = lane.save()
    lane.load(state)
    play(lane, joypads)
    assert lane.save() == after


OTHER_PROCESS = """
import sys
from pathlib import Path
from mario_dist.emulator import new_grey
from mario_dist.emulator.nes_py import NesPyEmulator
import hashlib

lane, grey = NesPyEmulator(), new_grey()
lane.load(Path(sys.argv[1]).read_bytes())
for joypad in Path(sys.argv[2]).read_bytes():
    lane.step(joypad)
    lane.grey(grey)
    print(hashlib.sha1(lane.ram.tobytes() + grey.tobytes()).hexdigest())
"""


def test_a_state_goes_on_in_another_process(tmp_path: Path) -> None:
    lane = in_level()
    play(lane, random_joypads(7, 200))
    lane.poke(0x7ED, 4)
    lane.step(RIGHT)
    joypads = random_joypads(8, 300)
    (tmp_path / "state").write_bytes(lane.save())
    (tmp_path / "joypads").write_bytes(bytes(joypads))
    assert run_python(OTHER_PROCESS, str(tmp_path / "state"), str(tmp_path / "joypads")) == play(
        lane, joypads
    )


DEAD_SOURCE = """
import gc
import numpy as np
from mario_dist.emulator.nes_py import NesPyEmulator

def reach() -> NesPyEmulator:
    lane = NesPyEmulator()
    for joypad in [0] * 40 + [8, 0] * 60:
        lane.step(joypad)
    return lane

lane, witness = NesPyEmulator(), reach()
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
    assert run_python(DEAD_SOURCE) == ["True True"]


def run_python(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def damaged(state: bytes) -> dict[str, bytes]:
    header = len(nes_py.MAGIC) + 8
    return {
        "empty": b"",
        "text": b"not a state at all",
        "another backend": b"native/1" + state[8:],
        "another version": state[:7] + b"2" + state[8:],
        "another ROM": state[:8] + bytes(8) + state[16:],
        "cut in the header": state[: header - 1],
        "cut in a word": state[:-1],
        "one byte too many": state + b"\0",
        "no such word": state[:-4] + b"\xff\xff\xff\xff",
        "no such joypad": state[:-4] + b"\x00\x02\x00\x00",
        "no such address": state[:-4] + b"\x00\x00\x08\x01",
    }


@pytest.mark.parametrize("damage", damaged(bytes(16)))
def test_what_is_no_state_of_this_backend_is_refused(damage: str) -> None:
    lane, witness = in_level(), in_level()
    state = lane.save()
    with pytest.raises(ValueError, match="nes-py"):
        lane.load(damaged(state)[damage])
    assert play(lane, [RIGHT] * 5) == play(witness, [RIGHT] * 5), "a refused load moved the machine"


def test_level_starts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is made once, is loaded without being played again, and is what playing it again gives."""
    state = level_start("nes-py", "1-1")
    assert level_start("auto", "1-1") is state
    lane = NesPyEmulator()
    frames: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(NesPyEmulator, "step", lambda self, joypad: frames.append(joypad))
        lane.load(state)
        assert frames == []
        forget(patch)
        lane.load(state)
        assert len(frames) > 100
    quick, replayed = in_level(), NesPyEmulator()
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


def test_grey_is_the_luminance_of_the_picture() -> None:
    lane, grey = in_level(), new_grey()
    assert grey.shape == SCREEN_SHAPE
    for _ in range(4):
        play(lane, random_joypads(10, 40))
        lane.grey(grey)
        rgb = lane.rgb()
        assert rgb.shape == (*SCREEN_SHAPE, 3)
        luminance = rgb.astype(np.float64) @ (0.299, 0.587, 0.114)
        assert np.abs(grey - luminance).max() <= 2
        assert len(np.unique(grey)) > 5, "the picture is empty"
        assert (rgb[..., 2] > rgb[..., 0]).mean() > 0.4, "the sky of 1-1 is blue: channels are swapped"


def test_rgb_is_a_copy() -> None:
    lane = in_level()
    first = lane.rgb()
    kept = first.copy()
    play(lane, [RIGHT] * 60)
    np.testing.assert_array_equal(first, kept)
    assert (lane.rgb() != kept).any()


def test_a_closed_lane_is_not_used_again() -> None:
    lane = in_level()
    lane.close()
    with pytest.raises(ValueError, match="closed"):
        lane.step(0)


def test_make_emulator_names_the_unknown_backend() -> None:
    assert isinstance(make_emulator("auto"), NesPyEmulator)
    assert isinstance(make_emulator("nes-py"), NesPyEmulator)
    with pytest.raises(ValueError, match="'fceux'"):
        make_emulator("fceux")
