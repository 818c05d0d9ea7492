"""One lane of NES hardware, whichever core runs it."""

from typing import Protocol

import numpy as np

from mario_dist.types import U8

SCREEN_SHAPE = (240, 256)
RAM_BYTES = 2048


class Emulator(Protocol):
    """An NES with a cartridge in it. One frame is 1/60 s of the machine's time.

    Lanes are independent: different lanes may be stepped from different threads at once.
    """

    @property
    def ram(self) -> U8:
        """The machine's own work RAM, a live uint8 view of shape [2048]. Write through ``poke`` only."""

    def step(self, joypad: int) -> None:
        """Run one frame with these buttons held (bit 0..7: A, B, select, start, up, down, left, right)."""

    def poke(self, address: int, value: int) -> None:
        """Write one byte of work RAM."""

    def grey(self, out_240x256: U8) -> None:
        """Copy the picture as luminance into a uint8 array of shape [240, 256]."""

    def rgb(self) -> U8:
        """The picture, a new uint8 array of shape [240, 256, 3]."""

    def save(self) -> bytes:
        """The machine's state, valid in other processes running the same ROM and backend."""

    def load(self, state: bytes) -> None:
        """Go on from a saved state. Raises ``ValueError`` where it is not one of this backend's."""

    def close(self) -> None:
        """Free the machine. A closed lane is not used again."""


def new_grey() -> U8:
    """A buffer that ``Emulator.grey`` fills."""
    return np.empty(SCREEN_SHAPE, dtype=np.uint8)
