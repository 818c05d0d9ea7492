"""One holder at a time of a name, over all processes that use a database."""

import fcntl
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from mario_dist.errors import UserError

_POLL_S = 0.05

_log = logging.getLogger(__name__)


@contextmanager
def exclusive(engine: Engine, name: str, timeout_s: float) -> Iterator[None]:
    """Hold ``name``. Nothing else of the database waits for it: not by its own locks, which writers need.

    A process that dies lets go. Raises ``UserError`` where another one holds it for ``timeout_s`` seconds.
    """
    hold = _hold_in_file if engine.dialect.name == "sqlite" else _hold_in_postgres
    with hold(engine, name, time.monotonic() + timeout_s):
        yield


@contextmanager
def _hold_in_file(engine: Engine, name: str, deadline: float) -> Iterator[None]:
    # One file for all names: SQLite is for one machine, and what is done under a lock is short.
    assert engine.url.database is not None
    path = Path(f"{engine.url.database.removeprefix('file:').partition('?')[0]}.lock")
    try:
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(name, deadline)
        yield


@contextmanager
def _hold_in_postgres(engine: Engine, name: str, deadline: float) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"mario-dist {name}".encode()).digest()[:8], signed=True)
    # A session's lock, not a transaction's: nothing must stay open in the database meanwhile.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
            _wait(name, deadline)
        try:
            yield
        finally:
            try:
                connection.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
            except DBAPIError:  # what was done under it stays done
                _log.warning(
                    "the lock on %s was lost with its connection; another process may have had it", name
                )


def _wait(name: str, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise UserError(f"another process has been busy with {name} for a while; try again")
    time.sleep(_POLL_S)
