"""A run's directory, and who may write to it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mario_dist.errors import UserError

_LOCK = "lock"


@contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Only one process trains a run. The kernel frees the lock of a process that died."""
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training {directory.name}; stop it first") from None
        yield


def is_trained(directory: Path) -> bool:
    """Whether a process holds ``lock_run`` now. Changes nothing."""
    try:
        with (directory / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or another user's
        return False
    return False


def make_run_directory(directory: Path) -> bool:
    """Whether it was not there. Raises ``UserError`` where it can't be, or is something else's."""
    try:
        new = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(13, "Permission denied")
        ours = any((directory / name).exists() for name in (_LOCK, "config.yaml", "checkpoints"))
        others = not new and not ours and any(directory.iterdir())
    except OSError as error:
        raise UserError(f"cannot write to {directory} ({error.strerror}); set MARIO_DIST_RUNS") from error
    if others:
        raise UserError(f"{directory} is there and no run's; choose another --run-id")
    return new
