"""The reference backend: nes-py's core, as gym-super-mario-bros runs it.

nes-py's snapshots live in one process only, so a portable state here is the list of everything that was
done to the machine since power-on. The core is deterministic: doing it again gives the same machine. The
snapshots that were taken or reached in this process are remembered, which makes the common loads (a
level's start, thousands of times) cost microseconds.

A machine that loaded a snapshot goes on reading the cartridge of the machine that the snapshot was taken
from, and nes-py does not keep that one alive: freed, its ROM is whatever comes to lie there, and the lane
crashes. So the cartridge's owner travels with every snapshot and stays with every lane that loaded it.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from gym_super_mario_bros._roms import smb1_rom_path
from nes_py import _native

from mario_dist.types import U8

MAGIC = b"nes-py/1"
# History words: 0..255 is a frame with that joypad byte; a poke is this flag | address << 8 | value.
_POKE = 1 << 24
_REMEMBERED_STATES = 64


class NesPyEmulator:
    """An ``Emulator`` on nes-py's native core; stepping releases the GIL."""

    def __init__(self, rom: Path | None = None) -> None:
        self._rom = str(rom or smb1_rom_path())
        self._digest = _rom_digest(self._rom)
        self._start()

    def _start(self) -> None:
        """Power on a new machine: the core's own reset leaves RAM as it was."""
        self._core: Any = _native.NativeEmulator(self._rom)
        self._core.reset()
        self._cartridge_owner = self._core
        self._ram: U8 = self._core.ram_buffer()
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
        self._remember(state)
        return state

    def load(self, state: bytes) -> None:
        header = MAGIC + self._digest
        if not state.startswith(header) or (len(state) - len(header)) % 4:
            raise ValueError("this is not a saved state of the nes-py backend with this ROM")
        history: list[int] = np.frombuffer(state, dtype="<u4", offset=len(header)).tolist()
        remembered = _snapshots.get(state)
        if remembered is not None:
            self._core.load_state(remembered.snapshot)
            self._cartridge_owner = remembered.cartridge_owner
            self._history = history
            return
        self._start()
        for word in history:
            if word & _POKE:
                self.poke(word >> 8 & 0x7FF, word & 0xFF)
            else:
                self.step(word & 0xFF)
        self._remember(state)

    def close(self) -> None:
        self._core.close()

    def _remember(self, state: bytes) -> None:
        _snapshots.put(state, _Snapshot(self._core.dump_state(), self._cartridge_owner))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """nes-py's snapshot, and the core whose cartridge it reads."""

    snapshot: object
    cartridge_owner: object


class _SnapshotCache:
    """The most recently used states of this process; lanes on many threads share it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._snapshots: OrderedDict[bytes, _Snapshot] = OrderedDict()
        self._lock = Lock()

    def get(self, state: bytes) -> _Snapshot | None:
        with self._lock:
            if state in self._snapshots:
                self._snapshots.move_to_end(state)
            return self._snapshots.get(state)

    def put(self, state: bytes, snapshot: _Snapshot) -> None:
        with self._lock:
            self._snapshots[state] = snapshot
            while len(self._snapshots) > self._size:
                self._snapshots.popitem(last=False)


_snapshots = _SnapshotCache(_REMEMBERED_STATES)


def _rom_digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()[:8]
