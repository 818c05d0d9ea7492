"""Disks that do not take a file: full ones, and ones that belong to somebody else."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mario_dist.bench import disk
from mario_dist.errors import UserError


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes in a directory. Skips the test where this user may not mount one."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.small_disk(directory, size))
        except UserError:
            pytest.skip("needs the right to mount a file system")
        yield


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel lets no file of this process grow past ``size`` bytes, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root for a while: root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
