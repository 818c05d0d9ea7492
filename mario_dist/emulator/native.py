"""The native backend: the C++ core in ``core/``, tens of times as fast as nes-py and the same game.

The core counts time as nes-py does: RAM and pictures are equal on every frame (``mario-dist bench parity``).
A saved state is a copy of the machine: about 4 kB with a version, the ROM's hash and a checksum.
"""

from pathlib import Path

import numpy as np

from mario_dist.emulator import _native
from mario_dist.emulator.protocol import SCREEN_SHAPE
from mario_dist.types import I64, U8


class NativeEmulator:
    """One of the core's lanes, as an ``Emulator``."""

    def __init__(self, lanes: _native.Lanes, lane: int) -> None:
        self._lanes, self._lane = lanes, lane
        self._ram: U8 = lanes.ram(lane)

    @property
    def ram(self) -> U8:
        return self._ram

    def step(self, joypad: int) -> None:
        self._lanes.step(self._lane, joypad)

    def poke(self, address: int, value: int) -> None:
        self._ram[address] = value

    def grey(self, out_240x256: U8) -> None:
        self._lanes.grey(self._lane, out_240x256)

    def rgb(self) -> U8:
        picture = np.empty((*SCREEN_SHAPE, 3), dtype=np.uint8)
        self._lanes.rgb(self._lane, picture)
        return picture

    def save(self) -> bytes:
        return self._lanes.save(self._lane)

    def load(self, state: bytes) -> None:
        self._lanes.load(self._lane, state)

    def close(self) -> None:
        """Nothing to do: the core frees a machine with the last reference to it."""


class NativeLanes:
    """``Lanes`` of the core: it runs them on ``threads``, its own and the caller's, without the GIL."""

    def __init__(
        self,
        rom: Path,
        n: int,
        frame_size: tuple[int, int],
        masked_rows: int,
        threads: int,
        keep_pictures: bool,
    ) -> None:
        cartridge = _native.Rom(rom.read_bytes())
        self._lanes = _native.Lanes(cartridge, n, min(threads, n), keep_pictures)
        self._resizer = _native.AreaResizer(*frame_size, masked_rows)
        self._emulators = [NativeEmulator(self._lanes, lane) for lane in range(n)]

    @property
    def emulators(self) -> list[NativeEmulator]:
        return self._emulators

    def run(self, lanes_M: I64, joypad_M: U8, frames_M: I64, ram_NR: U8, frame_NHW: U8) -> None:
        self._lanes.run(self._resizer, lanes_M, joypad_M, frames_M, ram_NR, frame_NHW)

    def close(self) -> None:
        """Nothing to do: the core stops its threads with the last reference to it."""
