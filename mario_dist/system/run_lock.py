"""Who may write to a run's directory."""

import fcntl
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
