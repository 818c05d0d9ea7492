"""NES hardware: one protocol, and two backends that play the same game."""

import importlib
import shutil
import sys
from pkgutil import extend_path
from typing import Literal

from mario_dist.emulator.nes_py import NesPyEmulator, NesPyLanes
from mario_dist.emulator.protocol import RAM_BYTES, SCREEN_SHAPE, Emulator, Lanes, new_grey
from mario_dist.emulator.rom import rom_path
from mario_dist.errors import UserError

__all__ = [
    "RAM_BYTES",
    "SCREEN_SHAPE",
    "Emulator",
    "Lanes",
    "build_native",
    "make_emulator",
    "make_lanes",
    "native_problem",
    "new_grey",
    "require_native",
    "resolve_backend",
]

__path__ = extend_path(__path__, __name__)  # as the package's


def make_lanes(
    backend: str,
    n: int,
    *,
    rom: str = "",
    frame_size: tuple[int, int] = (84, 84),
    masked_rows: int = 0,
    threads: int = 1,
    keep_pictures: bool = True,
) -> Lanes:
    """N powered-on machines with Super Mario Bros. in them; ``rom``, where given, is checked to be that.

    ``frame_size``, ``masked_rows`` and ``threads`` are what ``Lanes.run`` works with. It is faster where it
    need not ``keep_pictures`` for ``Emulator.rgb`` and ``grey``, which raise ``RuntimeError`` then.

    Raises ``UserError`` where the native core is asked for and not there, or the ROM is no good.
    """
    path = rom_path(rom)
    if resolve_backend(backend) == "nes-py":
        return NesPyLanes(path, n, frame_size, masked_rows, threads)
    from mario_dist.emulator.native import NativeLanes

    return NativeLanes(path, n, frame_size, masked_rows, threads, keep_pictures)


def make_emulator(backend: str, rom: str = "") -> Emulator:
    """One such machine."""
    if resolve_backend(backend) == "nes-py":
        return NesPyEmulator(rom_path(rom))
    return make_lanes(backend, 1, rom=rom).emulators[0]


def resolve_backend(backend: str) -> Literal["native", "nes-py"]:
    """``native`` or ``nes-py``; ``auto`` is the native core where it was built.

    Raises ``UserError`` where ``native`` is asked for and was not.
    """
    if backend not in ("auto", "native", "nes-py"):
        raise ValueError(f"there is no emulator backend {backend!r}")
    if backend == "native":
        require_native()
    return "nes-py" if backend == "nes-py" or native_problem() else "native"


def require_native() -> None:
    """Raises ``UserError`` where the native core can't be used."""
    if problem := native_problem():
        raise UserError(problem)


def build_native() -> str:
    """The command that builds the core: it gets a C++17 compiler, or shows why the one there failed."""
    build = "uv sync --reinstall-package mario-dist"
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return f"{build} -v"
    return f"{'xcode-select --install' if sys.platform == 'darwin' else 'apt-get install g++'} && {build}"


def native_problem() -> str | None:
    """Why the native core can't be used, and the command that mends it, in one line; None where it can."""
    try:
        importlib.import_module("mario_dist.emulator._native")
    except ImportError as error:
        return f"the native emulator core was not built ({error}); to build it: {build_native()}"
    return None
