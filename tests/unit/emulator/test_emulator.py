"""What every backend promises: deterministic machines whose states go on anywhere, bit for bit."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from mario_dist.emulator import (
    RAM_BYTES,
    SCREEN_SHAPE,
    Emulator,
    make_emulator,
    make_lanes,
    native_problem,
    new_grey,
    resolve_backend,
)
from mario_dist.emulator.native import NativeEmulator
from mario_dist.emulator.nes_py import NesPyEmulator
from mario_dist.env.starts import level_start
from mario_dist.errors import UserError

START, LEFT, RIGHT = 8, 64, 128
FRAME_COUNTER = 0x09
OTHER_BACKEND = {"native": "nes-py", "nes-py": "native"}


@pytest.fixture(params=["native", "nes-py"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def at_1_1(backend: str, machine: Emulator) -> Emulator:
    machine.load(level_start(backend, "1-1"))
    return machine


def in_level(backend: str) -> Emulator:
    """A machine at the start of 1-1."""
    return at_1_1(backend, make_emulator(backend))


def random_joypads(seed: int, frames: int) -> list[int]:
    """Buttons held for a while each, mostly to the right; never start or select, which would pause."""
    rng = np.random.default_rng(seed)
    joypads: list[int] = []
    while len(joypads) < frames:
        held = int(rng.integers(256)) & ~(START | 4)
        joypads += [held & ~LEFT | RIGHT if rng.random() < 0.7 else held] * int(rng.integers(1, 20))
    return joypads[:frames]


def play(machine: Emulator, joypads: list[int]) -> list[str]:
    """A digest of RAM and picture after each frame."""
    grey, digests = new_grey(), []
    for joypad in joypads:
        machine.step(joypad)
        machine.grey(grey)
        digests.append(hashlib.sha1(machine.ram.tobytes() + grey.tobytes()).hexdigest())
    return digests


def test_two_machines_do_the_same_from_power_on(backend: str) -> None:
    a, b = make_emulator(backend), make_emulator(backend)
    joypads = [0] * 40 + [START, 0] * 80 + random_joypads(0, 200)
    digests = play(a, joypads)
    assert digests == play(b, joypads)
    assert len(set(digests)) > 300, "the machine stands still"


def test_what_a_machine_does_depends_on_its_buttons(backend: str) -> None:
    assert play(in_level(backend), [RIGHT] * 30) != play(in_level(backend), [0] * 30)


@pytest.mark.parametrize("together", [True, False], ids=["lanes of one", "apart"])
def test_machines_on_two_threads_at_once_do_what_they_do_alone(backend: str, together: bool) -> None:
    plans = [random_joypads(1, 400), random_joypads(2, 400)]
    alone = [play(in_level(backend), plan) for plan in plans]
    lanes = make_lanes(backend, 2)
    machines = list(lanes.emulators) if together else [make_emulator(backend) for _ in plans]
    ready = Barrier(2)

    def work(i: int) -> list[str]:
        at_1_1(backend, machines[i])
        ready.wait()
        return play(machines[i], plans[i])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == alone
    assert alone[0] != alone[1]
    lanes.close()


def test_ram_is_a_live_view_of_the_machine(backend: str) -> None:
    machine = in_level(backend)
    ram = machine.ram
    assert ram.shape == (RAM_BYTES,)
    assert ram.dtype == np.uint8
    before = int(ram[FRAME_COUNTER])
    machine.step(0)
    assert int(ram[FRAME_COUNTER]) == (before + 1) % 256
    machine.poke(0x7ED, 7)
    assert ram[0x7ED] == 7
    at_1_1(backend, machine)
    assert (int(ram[FRAME_COUNTER]), ram[0x7ED]) == (before, 0), "a load left the view behind"
    machine.step(0)
    assert int(ram[FRAME_COUNTER]) == (before + 1) % 256


def test_a_poke_is_what_the_game_goes_on_from(backend: str) -> None:
    machine = in_level(backend)
    for address, digit in ((0x7F8, 0), (0x7F9, 0), (0x7FA, 1)):  # the time that is left
        machine.poke(address, digit)
    play(machine, [0] * 60)
    assert machine.ram[0x0E] == 11, "Mario has not run out of time"


def test_each_joypad_bit_is_its_button(backend: str) -> None:
    """The game keeps the buttons in the console's own order, A highest."""
    machine = in_level(backend)
    for bit in (0, 1, 4, 5, 6, 7):  # without select and start
        machine.step(1 << bit)
        assert machine.ram[0x6FC] == 0x80 >> bit


def test_start_pauses_the_game(backend: str) -> None:
    machine = in_level(backend)
    play(machine, [0] * 60)
    assert not machine.ram[0x776] & 1
    play(machine, [START, 0])
    assert machine.ram[0x776] & 1


def test_a_loaded_machine_goes_on_bit_for_bit(backend: str) -> None:
    """On another machine that was in the middle of something else, for as long as anyone looks."""
    machine = in_level(backend)
    play(machine, random_joypads(3, 300))
    machine.poke(0x7ED, 4)
    state, ram = machine.save(), machine.ram.copy()
    joypads = random_joypads(4, 1200)
    expected = play(machine, joypads)
    assert len(set(expected)) > 200, "the machine stands still"
    after = machine.save()

    other = make_emulator(backend)
    play(other, [START, 0] * 20)
    other.load(state)
    np.testing.assert_array_equal(other.ram, ram)
    assert other.save() == state
    assert play(other, joypads) == expected
    assert other.save() == after


def test_a_machine_goes_back_to_its_own_state(backend: str) -> None:
    machine = in_level(backend)
    play(machine, random_joypads(5, 100))
    state = machine.save()
    joypads = random_joypads(6, 100)
    first = play(machine, joypads)
    after = machine.save()
    machine.load(state)
    assert play(machine, joypads) == first
    assert machine.save() == after


def test_saving_changes_nothing(backend: str) -> None:
    a, b, joypads = in_level(backend), in_level(backend), random_joypads(11, 100)
    digests = []
    for joypad in joypads:
        digests += play(a, [joypad])
        a.save()
    assert digests == play(b, joypads)


OTHER_PROCESS = """
import hashlib
import sys
from pathlib import Path
from mario_dist.emulator import make_emulator, new_grey

machine, grey = make_emulator(sys.argv[1]), new_grey()
machine.load(Path(sys.argv[2]).read_bytes())
for joypad in Path(sys.argv[3]).read_bytes():
    machine.step(joypad)
    machine.grey(grey)
    print(hashlib.sha1(machine.ram.tobytes() + grey.tobytes()).hexdigest())
"""


def test_a_state_goes_on_in_another_process(backend: str, tmp_path: Path) -> None:
    machine = in_level(backend)
    play(machine, random_joypads(7, 200))
    machine.poke(0x7ED, 4)
    machine.step(RIGHT)
    joypads = random_joypads(8, 1100)
    (tmp_path / "state").write_bytes(machine.save())
    (tmp_path / "joypads").write_bytes(bytes(joypads))
    command = [sys.executable, "-P", "-c", OTHER_PROCESS, backend, "state", "joypads"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == play(machine, joypads)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "too long", "cut in half", "another backend's"])
def test_what_is_no_state_of_this_backend_is_refused(backend: str, damage: str) -> None:
    machine, witness = in_level(backend), in_level(backend)
    state = machine.save()
    other = {
        "empty": b"",
        "text": b"not a state at all",
        "cut": state[:-1],
        "too long": state + b"\0",
        "cut in half": state[: len(state) // 2 | 1],
        "another backend's": level_start(OTHER_BACKEND[backend], "1-1"),
    }[damage]
    with pytest.raises(ValueError, match="saved state"):
        machine.load(other)
    assert play(machine, [RIGHT] * 5) == play(witness, [RIGHT] * 5), "a refused load moved the machine"


def test_grey_is_the_luminance_of_the_picture(backend: str) -> None:
    machine, grey = in_level(backend), new_grey()
    assert grey.shape == SCREEN_SHAPE
    for _ in range(4):
        play(machine, random_joypads(10, 40))
        machine.grey(grey)
        rgb = machine.rgb()
        assert rgb.shape == (*SCREEN_SHAPE, 3)
        assert rgb.dtype == np.uint8
        luminance = rgb.astype(np.float64) @ (0.299, 0.587, 0.114)
        assert np.abs(grey - luminance).max() <= 2
        assert len(np.unique(grey)) > 5, "the picture is empty"
        assert (rgb[..., 2] > rgb[..., 0]).mean() > 0.4, "the sky of 1-1 is blue: channels are swapped"


def test_rgb_is_a_copy(backend: str) -> None:
    machine = in_level(backend)
    machine.step(0)
    first = machine.rgb()
    kept = first.copy()
    play(machine, [RIGHT] * 60)
    np.testing.assert_array_equal(first, kept)
    assert (machine.rgb() != kept).any()


def test_backends_by_name() -> None:
    assert native_problem() is None
    assert resolve_backend("auto") == "native"
    for name, kind in (("auto", NativeEmulator), ("native", NativeEmulator), ("nes-py", NesPyEmulator)):
        assert isinstance(make_emulator(name), kind)
        assert isinstance(make_lanes(name, 1).emulators[0], kind)
    for make in (lambda name: make_emulator(name), lambda name: make_lanes(name, 1), resolve_backend):
        with pytest.raises(ValueError, match="'fceux'"):
            make("fceux")


def test_where_the_native_core_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` plays on nes-py, and ``native`` says in one line what to do."""
    monkeypatch.setitem(sys.modules, "mario_dist.emulator._native", None)
    assert isinstance(make_emulator("auto"), NesPyEmulator)
    assert level_start("auto", "1-1") == level_start("nes-py", "1-1")
    with pytest.raises(UserError, match=r"not built .*uv sync") as refused:
        make_lanes("native", 1)
    assert "\n" not in str(refused.value)
