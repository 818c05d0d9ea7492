"""The reference backend: nes-py's core, as gym-super-mario-bros runs it.

nes-py's snapshots live in one process only, so a portable state here is the list of everything that was
done to the machine since power-on. The core is deterministic: doing it again gives the same machine. The
snapshots that were taken or reached in this process are remembered, which makes the common loads (a
level's start, thousands of times) cost microseconds.
"""

import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from nes_py import _native

from mario_dist.emulator.picture import AreaResizer
from mario_dist.emulator.protocol import new_grey
from mario_dist.types import I64, U8

MAGIC = b"nes-py/1"
# History words: 0..255 is a frame with that joypad byte; a poke is this flag | address << 8 | value.
_POKE = 1 << 24
_REMEMBERED_STATES = 64


class NesPyEmulator:
    """An ``Emulator`` on nes-py's native core; stepping releases the GIL."""

    def __init__(self, rom: Path) -> None:
        self._rom = str(rom)
        self._digest = _rom_digest(self._rom)
        self._core: Any = _native.NativeEmulator(self._rom)
        self._ram: U8 = self._core.ram_buffer()
        self._power_on()

    def _power_on(self) -> None:
        # Not the core's own reset: that leaves RAM as it was.
        with _power_on_lock:  # a core that lost a race for the cache would be freed after all
            _, snapshot = _power_on(self._rom)
        self._core.load_state(snapshot)
        self._history: list[int] = []

    @property
    def ram(self) -> U8:
        return self._ram

    def step(self, joypad: int) -> None:
        self._core.frame_advance(joypad)
        self._history.append(joypad)

    def poke(self, address: int, value: int) -> None:
        self._ram[address] = value
        self._history.append(_POKE | address << 8 | value)

    def grey(self, out_240x256: U8) -> None:
        self._core.copy_screen_grayscale(out_240x256)

    def rgb(self) -> U8:
        picture: U8 = self._core.copy_screen_rgb(None)
        return picture

    def save(self) -> bytes:
        state = MAGIC + self._digest + np.asarray(self._history, dtype="<u4").tobytes()
        _snapshots.put(state, self._core.dump_state())
        return state

    def load(self, state: bytes) -> None:
        header = MAGIC + self._digest
        if not state.startswith(header) or (len(state) - len(header)) % 4:
            raise ValueError("this is not a saved state of the nes-py backend with this ROM")
        words = np.frombuffer(state, dtype="<u4", offset=len(header))
        if ((words > 0xFF) & (words >> 19 != _POKE >> 19)).any():
            raise ValueError("this saved state of the nes-py backend is damaged")
        history: list[int] = words.tolist()
        snapshot = _snapshots.get(state)
        if snapshot is not None:
            self._core.load_state(snapshot)
            self._history = history
            return
        self._power_on()
        for word in history:
            if word & _POKE:
                self.poke(word >> 8 & 0x7FF, word & 0xFF)
            else:
                self.step(word & 0xFF)
        _snapshots.put(state, self._core.dump_state())

    def close(self) -> None:
        self._core.close()


class NesPyLanes:
    """``Lanes`` of nes-py cores on a pool of threads: stepping and shrinking release the GIL."""

    def __init__(
        self, rom: Path, n: int, frame_size: tuple[int, int], masked_rows: int, threads: int
    ) -> None:
        self._emulators = [NesPyEmulator(rom) for _ in range(n)]
        self._greys = [new_grey() for _ in range(n)]
        self._resizer = AreaResizer(*frame_size, masked_rows)
        threads = min(threads, n)
        self._pool = ThreadPoolExecutor(threads, "lanes") if threads > 1 else None

    @property
    def emulators(self) -> list[NesPyEmulator]:
        return self._emulators

    def run(self, lanes_M: I64, joypad_M: U8, frames_M: I64, ram_NR: U8, frame_NHW: U8) -> None:
        def run_lane(lane: int, joypad: int, frames: int) -> None:
            emulator, grey = self._emulators[lane], self._greys[lane]
            for _ in range(frames):
                emulator.step(joypad)
            ram_NR[lane] = emulator.ram
            emulator.grey(grey)
            self._resizer(grey, frame_NHW[lane])

        work = (lanes_M.tolist(), joypad_M.tolist(), frames_M.tolist())
        # Consume the results, so that a failure in a thread is raised here.
        list((map if self._pool is None else self._pool.map)(run_lane, *work))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for emulator in self._emulators:
            emulator.close()


class _SnapshotCache:
    """The most recently used states of this process; lanes on many threads share it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._snapshots: OrderedDict[bytes, object] = OrderedDict()
        self._lock = Lock()

    def get(self, state: bytes) -> object | None:
        with self._lock:
            if state in self._snapshots:
                self._snapshots.move_to_end(state)
            return self._snapshots.get(state)

    def put(self, state: bytes, snapshot: object) -> None:
        with self._lock:
            self._snapshots[state] = snapshot
            while len(self._snapshots) > self._size:
                self._snapshots.popitem(last=False)


_snapshots = _SnapshotCache(_REMEMBERED_STATES)
_power_on_lock = Lock()


@cache
def _power_on(rom: str) -> tuple[object, object]:
    """A core of this process that is never freed, and its state at power-on.

    A native snapshot points into the cartridge of the core that took it, and so does every core that loads
    it. All cores start from this snapshot, so that they point into a cartridge that stays.
    """
    core = _native.NativeEmulator(rom)
    core.reset()
    return core, core.dump_state()


def _rom_digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()[:8]
