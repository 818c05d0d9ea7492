"""From a URL that a person pasted to a working engine, or to one clear line."""

import json
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SAWarning

from mario_dist.errors import UserError
from mario_dist.paths import runs_dir
from mario_dist.urls import is_clear

CONNECT_TIMEOUT_S = 5
_READ_ONLY_TRANSACTION = "25006"
_A_SERVER = re.compile(
    r"[\w.-]+:\d+(/|$)|[^/]*:.*@|(?!file:)[\w+.-]+:/|postgres(ql)?[:/]|.*\b(password|pwd)\s*=",
    re.DOTALL | re.IGNORECASE,
)
"""A path that is HOST:PORT, USER:PASSWORD@HOST, SCHEME:/ or libpq's: no file is named by a password."""
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql+psycopg2")


class StoreUnavailable(UserError):
    """The database did not answer or did not take a write; a retry may succeed."""


def default_url() -> str:
    """``MARIO_DIST_DB``, or an SQLite file beside the runs."""
    return os.environ.get("MARIO_DIST_DB") or f"sqlite:///{runs_dir() / 'mario.db'}"


def normalise_url(url: str) -> str:
    """The SQLAlchemy URL of what a user pasted: a bare path is SQLite, any PostgreSQL URL gets psycopg2.

    SQLAlchemy 2.1 takes ``postgresql://`` for psycopg 3, which is not installed.
    """
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    if not separator:
        path = str(Path(url).expanduser()) if url else ""
        return URL.create("sqlite", database=path).render_as_string()
    if re.fullmatch(r"postgres(ql)?(\+\w+)?", scheme):
        return f"postgresql+psycopg2://{rest}"
    return url


def open_engine(url: str, busy_timeout_s: float) -> tuple[Engine, str]:
    """An engine, not yet connected, and the name of its database for messages, without credentials.

    The directory of an SQLite file is made. Raises ``UserError`` for a URL that cannot be used.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, busy_timeout_s)
    defaults: dict[str, int | str] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "mario-dist",
        # A server that vanished without a word is given up after half a minute, not after fifteen.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    # Not the user's name either: with a colon that is %-encoded, it has the password in it.
    where = URL.create("postgresql", host=parsed.host, port=parsed.port, database=parsed.database)
    with _clear_options():
        engine = create_engine(
            parsed,
            connect_args={key: value for key, value in defaults.items() if key not in parsed.query},
            pool_pre_ping=True,  # a server that was restarted during a long training is found again
            executemany_mode="values_plus_batch",  # or an upsert makes one round trip per row
            hide_parameters=True,
            json_serializer=to_json,
        )
    return engine, where.render_as_string()


def missing_file(url: str) -> Path | None:
    """The file that an SQLite URL names, where it is not there: opening would make it.

    Raises ``UserError`` for a URL that cannot be used.
    """
    parsed = _parse(url)
    path = parsed.database
    if parsed.get_backend_name() != "sqlite" or path is None or path.startswith("file:"):
        return None
    file = Path(path).expanduser().absolute()
    return None if file.exists() else file


@contextmanager
def clear_errors(engine: Engine, where: str) -> Iterator[None]:
    """Turn a database that is away, locked, full or read-only into ``StoreUnavailable`` with one line."""
    try:
        yield
    except DBAPIError as error:
        away = isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated
        # A standby, to which a failover led.
        if away or getattr(error.orig, "pgcode", None) == _READ_ONLY_TRANSACTION:
            raise StoreUnavailable(_explain(error, engine.url, where)) from error
        raise


@contextmanager
def clear_opening_errors(engine: Engine, where: str) -> Iterator[None]:
    """While opening, whatever the database says is for the user to read: not a database, no rights, ..."""
    try:
        yield
    except DBAPIError as error:
        raise StoreUnavailable(_explain(error, engine.url, where)) from error


def to_json(value: object) -> str:
    """JSON that PostgreSQL takes: NaN and infinities become null, NumPy scalars plain numbers."""
    return json.dumps(_finite(value), default=lambda v: _finite(v.item()) if hasattr(v, "item") else str(v))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _parse(url: str) -> URL:
    # The parser's own words are not repeated: they may quote a piece of the password.
    url, hint = url.strip(), "write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
    unreadable = UserError(f"cannot read the database URL; {hint}, special characters %-encoded (@ as %40)")
    try:
        parsed = make_url(normalise_url(url))
    except (ArgumentError, ValueError):
        raise unreadable from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        clear = url.isprintable() and not _A_SERVER.match(parsed.database or "")
    else:
        clear = is_clear(url) and not re.search(r"[?#;&=]", parsed.database or "")
    if not clear:
        raise unreadable
    if backend not in ("sqlite", "postgresql"):
        raise UserError(f"runs are stored in SQLite or PostgreSQL, not in {backend!r}; {hint}")
    if parsed.drivername not in _DRIVERS:
        raise unreadable
    server = parsed.host or parsed.username is not None
    if backend == "sqlite" and (server or not parsed.database or parsed.database == ":memory:"):
        raise UserError("an SQLite URL must name a file, such as sqlite:///runs/mario.db (three slashes)")
    return parsed


def _open_sqlite(url: URL, busy_timeout_s: float) -> tuple[Engine, str]:
    path = url.database
    assert path is not None
    if not path.startswith("file:"):
        # Absolute, because the pool opens files later, when the working directory may be another.
        file = Path(path).expanduser().absolute()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the directory {file.parent} of the run database: {error.strerror}"
            ) from error
        url = url.set(database=str(file))
    with _clear_options():
        engine = create_engine(
            url, connect_args={"timeout": busy_timeout_s}, hide_parameters=True, json_serializer=to_json
        )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # the driver would start transactions late and not for DDL
        connection.execute("PRAGMA foreign_keys = ON")
        _use_write_ahead_log(connection, busy_timeout_s)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine, path


@contextmanager
def _clear_options() -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="error", category=SAWarning):
            yield
    except (ArgumentError, SAWarning, ValueError):
        raise UserError("cannot read the database URL: it has options (?...) that mean nothing") from None


def _use_write_ahead_log(connection: sqlite3.Connection, busy_timeout_s: float) -> None:
    """WAL lets others read while a training writes. SQLite does not wait for the lock that it needs here."""
    deadline = time.monotonic() + busy_timeout_s
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return  # where the file system cannot do it, SQLite keeps the old mode, which works as well
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _explain(error: DBAPIError, url: URL, where: str) -> str:
    reason = str(error.orig)
    for secret in filter(None, [url.password, url.query.get("password"), url.query.get("sslpassword")]):
        reason = reason.replace(str(secret), "***")
    reason = " ".join(reason.split())
    return f"cannot use the run database {where}: {reason}"
