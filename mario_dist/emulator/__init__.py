"""A lane of NES hardware: one protocol, one or more backends."""

from mario_dist.emulator.nes_py import NesPyEmulator
from mario_dist.emulator.protocol import RAM_BYTES, SCREEN_SHAPE, Emulator, new_grey

__all__ = ["RAM_BYTES", "SCREEN_SHAPE", "Emulator", "make_emulator", "new_grey"]


def make_emulator(backend: str) -> Emulator:
    """A powered-on lane with Super Mario Bros. in it. ``auto`` takes the fastest backend there is."""
    if backend in ("auto", "nes-py"):
        return NesPyEmulator()
    raise ValueError(f"there is no emulator backend {backend!r}")
