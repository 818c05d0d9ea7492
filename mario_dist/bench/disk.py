"""A disk that can be filled: a file system of a few bytes in memory."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mario_dist.errors import UserError


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes in a directory. Raises ``UserError`` where there may be none."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        raise UserError("a small disk takes the right to mount a file system, which root has")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Within the block, the disk of this directory has no room left."""
    filler = directory / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    try:
        yield
    finally:
        filler.unlink()
