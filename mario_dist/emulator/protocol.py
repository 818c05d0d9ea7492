"""NES hardware, whichever core runs it: one machine, and many of them run together."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mario_dist.types import I64, U8

SCREEN_SHAPE = (240, 256)
RAM_BYTES = 2048


class Emulator(Protocol):
    """An NES with a cartridge in it. One frame is 1/60 s of the machine's time.

    Machines are independent: different ones may be stepped from different threads at once.
    """

    @property
    def ram(self) -> U8:
        """The machine's own work RAM, a live uint8 view of shape [2048]. Write through ``poke`` only."""

    def step(self, joypad: int) -> None:
        """Run one frame with these buttons held (bit 0..7: A, B, select, start, up, down, left, right)."""

    def poke(self, address: int, value: int) -> None:
        """Write one byte of work RAM."""

    def grey(self, out_240x256: U8) -> None:
        """Copy the picture of the last frame as luminance into a uint8 array of shape [240, 256].

        The picture is not part of the machine's state: after ``load`` there is one from the next frame on.
        """

    def rgb(self) -> U8:
        """The picture of the last frame, a new uint8 array of shape [240, 256, 3]."""

    def save(self) -> bytes:
        """The machine's state, valid in other processes running the same ROM and backend."""

    def load(self, state: bytes) -> None:
        """Go on from a saved state. Raises ``ValueError`` where it is not one of this backend's."""

    def close(self) -> None:
        """Free the machine. A closed one is not used again."""


class Lanes(Protocol):
    """N machines with the same cartridge, run together."""

    @property
    def emulators(self) -> Sequence[Emulator]:
        """The machines, one of each lane."""

    def run(self, lanes_M: I64, joypad_M: U8, frames_M: I64, ram_NR: U8, frame_NHW: U8) -> None:
        """Let M of the lanes, named once each, run so many frames (at least 1) with these buttons held.

        Writes their RAM, and their last picture as the policy sees it (grey, masked, resized), to their own
        rows of ``ram_NR``, uint8 [N, 2048], and ``frame_NHW``, uint8 [N, H, W]. Other rows stay. Calls from
        several threads take turns.
        """

    def close(self) -> None:
        """Free the machines and threads."""


def new_grey() -> NDArray[np.uint8]:
    """A buffer that ``Emulator.grey`` fills."""
    return np.empty(SCREEN_SHAPE, dtype=np.uint8)
