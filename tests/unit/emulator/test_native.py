"""The native core's own: what it refuses to load or to run, and how its states and threads live."""

import gc
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mario_dist.emulator import RAM_BYTES, Emulator, Lanes, _native, make_emulator, make_lanes, new_grey
from mario_dist.emulator.rom import rom_path
from mario_dist.env.starts import level_start

START, RIGHT = 8, 128
HEADER = 24  # magic and version, the ROM's hash, the checksum
BITS_64 = 2**64 - 1


def playing() -> Emulator:
    """A machine in the middle of 1-1."""
    machine = make_emulator("native")
    machine.load(level_start("native", "1-1"))
    for joypad in random_joypads(0, 100):
        machine.step(joypad & ~START)
    return machine


def random_joypads(seed: int, frames: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(256, size=frames), rng.integers(1, 20, size=frames))[:frames].tolist()


# States.


def checksum(payload: bytes) -> int:
    """``hash_bytes`` of rom.cpp."""
    found = 0xCBF29CE484222325 ^ len(payload)
    for at in range(0, len(payload), 8):
        word = int.from_bytes(payload[at : at + 8], "little")
        found = (found ^ word) * 0x100000001B3 & BITS_64
        found ^= found >> 29
    return found


def forged(state: bytes, at: int, value: bytes) -> bytes:
    """The state with other bytes from ``at`` of its payload on, and a checksum that says they are right."""
    payload = bytearray(state[HEADER:])
    payload[at : at + len(value)] = value
    return state[:16] + checksum(bytes(payload)).to_bytes(8, "little") + payload


def assert_refused(machine: Emulator, state: bytes, why: str) -> None:
    before = machine.save()
    with pytest.raises(ValueError, match=why):
        machine.load(state)
    assert machine.save() == before, "a refused load moved the machine"


def test_a_state_is_a_few_kilobytes() -> None:
    assert RAM_BYTES * 2 < len(playing().save()) < RAM_BYTES * 2 + 512


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        pytest.param(0, b"X", "not a saved state", id="another kind of file"),
        pytest.param(7, b"\x7f", "another version", id="another version"),
        pytest.param(8, b"\0\0\0\0", "another ROM", id="another ROM"),
        pytest.param(16, b"\0\0\0\0", "checksum", id="another checksum"),
        pytest.param(HEADER, b"\0\xff\0\xff", "checksum", id="another payload"),
    ],
)
def test_the_header_is_checked(at: int, value: bytes, why: str) -> None:
    machine = playing()
    state = machine.save()
    machine.step(RIGHT)
    assert_refused(machine, state[:at] + value + state[at + len(value) :], why)


def test_a_state_of_another_length_is_refused() -> None:
    machine = playing()
    state = machine.save()
    for wrong in (state[:-1], state + b"\0", state[:HEADER], state[:8], state + state):
        assert_refused(machine, wrong, "damaged: its length")
    for wrong in (b"", state[:7]):
        assert_refused(machine, wrong, "not a saved state")


def test_every_flipped_bit_is_seen() -> None:
    machine = playing()
    state = machine.save()
    for bit in range(8 * len(state)):
        damaged = bytearray(state)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="saved state"):
            machine.load(bytes(damaged))
    assert machine.save() == state


def test_a_state_of_another_rom_is_refused() -> None:
    file = bytearray(rom_path().read_bytes())
    file[-1] ^= 1  # a pixel of the last tile
    other = _native.Lanes(_native.Rom(bytes(file)), 1, 1, True)
    with pytest.raises(ValueError, match="another ROM"):
        other.load(0, playing().save())


# Fields of `State` in machine.hpp, that out of their range would have the core read elsewhere.
INSANE = {
    "cycle below 0": (0, struct.pack("<i", -1)),
    "cycle too high": (0, struct.pack("<i", 2048)),
    "odd_call": (11, b"\x02"),
    "line": (12, struct.pack("<H", 262)),
    "dot": (14, struct.pack("<H", 342)),
    "dot 0 of a line of the picture": (12, struct.pack("<HH", 100, 0)),
    "fine_x": (20, b"\x08"),
    "second_write": (21, b"\x02"),
    "vblank": (26, b"\x80"),
    "sprite0_hit": (27, b"\x40"),
    "odd_picture": (28, b"\xff"),
    "sprites_known": (29, b"\x02"),
    "sprite_count": (30, b"\x09"),
    "first of sprite_list": (31, b"\x40"),
    "last of sprite_list": (38, b"\xff"),
    "strobe": (39, b"\x02"),
}


@pytest.mark.parametrize("field", INSANE)
def test_insane_fields_are_refused_under_a_forged_checksum(field: str) -> None:
    machine = playing()
    assert_refused(machine, forged(machine.save(), *INSANE[field]), "damaged$")


def test_sane_fields_are_loaded_under_a_forged_checksum() -> None:
    """That is, the forging is right, and what is refused above is refused for its field."""
    machine = playing()
    state = machine.save()
    assert forged(state, 0, b"") == state
    other = forged(state, 6, b"\x12\x34\x56")  # A, X and Y
    assert other != state
    machine.load(other)
    assert machine.save() == other


OTHER_PROCESS = """
import sys
from pathlib import Path
from mario_dist.emulator import make_emulator

machine = make_emulator("native")
machine.load(Path("state").read_bytes())
for joypad in Path("joypads").read_bytes():
    machine.step(joypad)
    sys.stdout.buffer.write(machine.ram.tobytes())
Path("after").write_bytes(machine.save())
"""


def test_a_state_goes_on_in_another_process(tmp_path: Path) -> None:
    """Bit for bit over 3000 frames: its RAM in every one, the rest of the machine at the end."""
    machine, joypads = playing(), random_joypads(1, 3000)
    (tmp_path / "state").write_bytes(machine.save())
    (tmp_path / "joypads").write_bytes(bytes(joypads))
    command = [sys.executable, "-P", "-c", OTHER_PROCESS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    rams = np.empty((len(joypads), RAM_BYTES), dtype=np.uint8)
    for ram, joypad in zip(rams, joypads, strict=True):
        machine.step(joypad)
        ram[:] = machine.ram
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8).reshape(rams.shape), rams)
    assert (tmp_path / "after").read_bytes() == machine.save()
    assert len(np.unique(rams, axis=0)) > 1000, "the machine stands still"


# What `run` is asked.


def run(lanes: Lanes, **changes: object) -> None:
    arguments: dict[str, object] = {
        "lanes_M": np.array([0, 2]),
        "joypad_M": np.zeros(2, dtype=np.uint8),
        "frames_M": np.array([1, 1]),
        "ram_NR": np.zeros((3, RAM_BYTES), dtype=np.uint8),
        "frame_NHW": np.zeros((3, 84, 84), dtype=np.uint8),
        **changes,
    }
    lanes.run(**arguments)  # type: ignore[arg-type]


def read_only() -> np.ndarray:
    ram = np.zeros((3, RAM_BYTES), dtype=np.uint8)
    ram.flags.writeable = False
    return ram


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"lanes_M": np.array([0, 3])}, IndexError),
        ({"lanes_M": np.array([0, -1])}, IndexError),
        ({"lanes_M": np.array([2**62, 0])}, IndexError),
        ({"lanes_M": np.array([1, 1])}, ValueError),
        ({"frames_M": np.array([1, 0])}, ValueError),
        ({"frames_M": np.array([-1, 1])}, ValueError),
        ({"lanes_M": np.array([0])}, ValueError),
        ({"joypad_M": np.zeros(3, dtype=np.uint8)}, ValueError),
        ({"frames_M": np.array([1, 1, 1])}, ValueError),
        ({"ram_NR": np.zeros((2, RAM_BYTES), dtype=np.uint8)}, ValueError),
        ({"ram_NR": np.zeros((3, RAM_BYTES - 1), dtype=np.uint8)}, ValueError),
        ({"frame_NHW": np.zeros((2, 84, 84), dtype=np.uint8)}, ValueError),
        ({"frame_NHW": np.zeros((3, 84, 83), dtype=np.uint8)}, ValueError),
        ({"frame_NHW": np.zeros((3, 83, 84), dtype=np.uint8)}, ValueError),
        ({"frame_NHW": np.zeros((3, 84 * 84), dtype=np.uint8)}, TypeError),
        ({"lanes_M": np.array([[0], [2]])}, TypeError),
        # Arrays that would have to be copied first: what is written to a copy, nobody sees.
        ({"ram_NR": np.zeros((3, 2 * RAM_BYTES), dtype=np.uint8)[:, ::2]}, TypeError),
        ({"ram_NR": np.zeros((3, RAM_BYTES), dtype=np.int32)}, TypeError),
        ({"ram_NR": read_only()}, TypeError),
        ({"frame_NHW": np.zeros((3, 84, 168), dtype=np.uint8)[..., ::2]}, TypeError),
        ({"frame_NHW": np.zeros((3, 84, 84), dtype=np.float32)}, TypeError),
        # Numbers that would have to be rounded or cut.
        ({"lanes_M": np.array([0.0, 1.5])}, TypeError),
        ({"joypad_M": np.array([256, 0])}, TypeError),
    ],
)
def test_run_refuses_what_does_not_fit(changes: dict[str, object], error: type[Exception]) -> None:
    lanes = make_lanes("native", 3, threads=2)
    before = [machine.save() for machine in lanes.emulators]
    with pytest.raises(error):
        run(lanes, **changes)
    assert [machine.save() for machine in lanes.emulators] == before, "lanes ran all the same"
    run(lanes)
    assert [machine.save() != state for machine, state in zip(lanes.emulators, before, strict=True)] == [
        True,
        False,
        True,
    ]


def test_run_reads_views() -> None:
    """Of what it only reads, any part of an array will do."""
    a, b = make_lanes("native", 3), make_lanes("native", 3)
    run(a, lanes_M=np.array([2, 0]), joypad_M=np.array([1, 128], np.uint8), frames_M=np.array([5, 3]))
    run(
        b,
        lanes_M=np.array([0, 1, 2])[::-2],
        joypad_M=np.array([[1, 9], [128, 9]], np.uint8)[:, 0],
        frames_M=np.array([5, 9, 3])[::2],
    )
    assert [machine.save() for machine in a.emulators] == [machine.save() for machine in b.emulators]


def test_pictures_are_copied_to_what_fits_them_only() -> None:
    machine = playing()
    with pytest.raises(ValueError, match="240 by 256"):
        machine.grey(np.zeros((240, 255), dtype=np.uint8))
    with pytest.raises(TypeError):
        machine.grey(np.zeros((240, 512), dtype=np.uint8)[:, ::2])


@pytest.mark.parametrize(("n", "threads"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_there_is_a_lane_and_a_thread(n: int, threads: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_lanes("native", n, threads=threads)


@pytest.mark.parametrize("size", [(0, 84), (84, 0), (241, 84), (84, 257), (-1, 84)])
def test_a_frame_is_no_larger_than_the_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="240 by 256"):
        make_lanes("native", 1, frame_size=size)


# Pictures, memory and threads.


def test_there_is_no_picture_before_the_first_frame() -> None:
    machine = make_emulator("native")
    for look in (machine.rgb, lambda: machine.grey(new_grey())):
        with pytest.raises(RuntimeError, match="no picture"):
            look()
    machine.step(0)
    machine.rgb()


def test_a_lane_whose_pictures_are_not_kept_has_none() -> None:
    lanes = make_lanes("native", 3, keep_pictures=False)
    for machine in lanes.emulators:
        machine.step(0)  # one frame of one lane is always kept
        machine.rgb()
    run(lanes)
    for lane in (0, 2):
        with pytest.raises(RuntimeError, match="no picture"):
            lanes.emulators[lane].rgb()
    lanes.emulators[1].rgb()


def test_a_view_of_ram_keeps_the_machine() -> None:
    machine = playing()
    ram, kept = machine.ram, machine.ram.copy()
    del machine
    gc.collect()
    junk = [make_emulator("native") for _ in range(50)]
    np.testing.assert_array_equal(ram, kept)
    del junk


def test_threads_go_with_their_lanes() -> None:
    gc.collect()
    before = psutil.Process().num_threads()
    lanes = make_lanes("native", 3, threads=3)
    assert psutil.Process().num_threads() == before + 2
    run(lanes)
    del lanes
    gc.collect()
    assert psutil.Process().num_threads() == before


def test_python_goes_on_while_lanes_run() -> None:
    lanes = make_lanes("native", 3)
    worker = threading.Thread(target=run, args=(lanes,), kwargs={"frames_M": np.array([4000, 4000])})
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 10


OTHER_CALLERS = """
import os, threading
import numpy as np
from mario_dist.emulator import make_lanes

lanes = make_lanes("native", 4, threads=3)
ram, frames = np.zeros((4, 2048), np.uint8), np.zeros((4, 84, 84), np.uint8)


def run(*named: int) -> None:
    for _ in range(100):
        lanes.run(np.array(named), np.zeros(2, np.uint8), np.ones(2, np.int64), ram, frames)


threads = [threading.Thread(target=run, args=named) for named in ((0, 1), (2, 3))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert (ram == ram[0]).all() and ram.any()
for _ in range(100):
    lanes.run(np.array([0, 1]), np.zeros(2, np.uint8), np.ones(2, np.int64), ram, frames)
    pid = os.fork()  # while the pool's threads go to sleep, perhaps with its lock
    if pid == 0:
        run(0, 1)
        del lanes
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_callers_in_other_threads_and_forks_do_not_wait_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_CALLERS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_joypad_is_a_byte() -> None:
    lane = make_emulator("native")
    for joypad in (256, -1):
        with pytest.raises(TypeError):
            lane.step(joypad)
