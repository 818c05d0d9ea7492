"""From a tracking URI to an MLflow client that answers, or to one clear line.

MLflow takes seconds to import, so it is imported where it is first used and never with this package.
"""

import fcntl
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus, urlsplit

from mario_dist.errors import UserError
from mario_dist.paths import runs_dir
from mario_dist.urls import is_clear

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 5
MESSAGE_LIMIT = 300

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow would try again for four minutes; a training that ends should not wait that long for it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_PUBLIC = ("sslmode", "connect_timeout", "application_name", "host", "port", "dbname", "user")
"""Of a query, what messages may say."""
_SHORTEST = 4
"""Of a secret: what is shorter is in every other word of a message."""
_OPENING_LOCK = 0x6D6C666C6F77  # "mlflow": any number that no other program's advisory lock has


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or an SQLite file beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir() / 'mlflow.db'}"


def resolve_uri(uri: str) -> str:
    """What MLflow needs for what a user pasted: psycopg2 for PostgreSQL, an absolute path for SQLite.

    Raises ``UserError`` for a URI that is none, that names no file, or whose password is not encoded.
    """
    uri = uri.strip()
    scheme, _, rest = uri.partition("://")
    if scheme != "sqlite" and not is_clear(uri):
        raise UserError(
            "cannot read the tracking URI: special characters of a password must be %-encoded (@ as %40)"
        )
    if not _parses(uri):
        raise UserError(
            "cannot read the tracking URI: write sqlite:///PATH, postgresql://... or http://HOST:PORT"
        )
    if re.fullmatch(r"postgres(ql)?(\+\w+)?", scheme):
        return f"postgresql+psycopg2://{rest}"
    if scheme == "sqlite":
        path = rest.removeprefix("/")
        if not rest.startswith("/") or path in ("", ":memory:"):
            raise UserError("an SQLite tracking URI must name a file, such as sqlite:///runs/mlflow.db")
        return f"sqlite:///{Path(path).expanduser().absolute()}"
    if not uri or (scheme != "databricks" and not rest):
        raise UserError(
            f"{redact(uri)!r} is no tracking URI; write sqlite:///PATH, postgresql://... or http://..."
        )
    return uri


def redact(uri: str) -> str:
    """``uri`` without its credentials, its query and its fragment, for messages."""
    shown = re.sub(r"^([\w.+-]+:/+)?.*@", r"\1***@", uri, flags=re.DOTALL)
    return re.split(r"[?#;&]", shown, maxsplit=1)[0]


def _parses(uri: str) -> bool:
    try:
        return uri.isprintable() and urlsplit(uri).port != 0
    except ValueError:
        return False


def _secrets(uri: str) -> list[str]:
    """What a message must not say, as it is in a ``uri`` and as it is meant."""
    parts = urlsplit(uri)
    found = [parts.password or ""]
    for item in re.split(r"[?#;&]", uri)[1:]:
        name, _, value = item.partition("=")
        if name not in _PUBLIC and len(value) >= _SHORTEST:
            found.append(value)
    # A message is one line, whatever the password.
    meant = [spaces(value) for value in found for spaces in (unquote, unquote_plus)]
    return [secret for secret in {*found, *meant, *(" ".join(value.split()) for value in meant)} if secret]


def explain(error: BaseException, uri: str) -> str:
    """One line: the innermost cause, which names what failed where MLflow's own text is a page."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        if isinstance(cause, KeyError):
            break  # a failed look-up that MLflow explains better
        error = cause
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"//[^@/ ]*@", "//***@", text)
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 3] + "..."


def open_client(uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    """A client for a resolved ``uri`` and the id of its experiment, which is made where it is missing.

    Raises ``UserError`` where the server or the database does not answer within a few seconds.
    """
    try:
        with _exclusive(uri):
            import_mlflow()
            from mlflow import MlflowClient

            with _environment(_impatient(uri)):
                client = MlflowClient(uri, registry_uri=uri)  # not MLFLOW_REGISTRY_URI's
                return client, _experiment_id(client, uri, experiment)
    except UserError:
        raise
    except Exception as error:  # drivers, MLflow and its plug-ins each raise their own
        message = f"cannot use MLflow at {redact(uri)}: {explain(error, uri)}; see MLFLOW_TRACKING_URI"
        raise UserError(message) from error


def import_mlflow() -> None:
    """Import MLflow with its telemetry, its progress bars and its chatter off."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever the user's says: a model is data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It would announce each attempt of a request that the tracker reports once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=_artifact_location(uri))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another run may have made it just now
            if experiment is None:
                raise error
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite database, beside the runs for PostgreSQL; a server decides for itself."""
    if (file := _sqlite_file(uri)) is not None:
        return (file.parent / "mlartifacts").as_uri()
    if uri.startswith("postgresql"):
        return (runs_dir() / "mlartifacts").absolute().as_uri()
    return None


def _sqlite_file(uri: str) -> Path | None:
    scheme, _, path = uri.partition(":///")
    return Path(path.partition("?")[0]) if scheme == "sqlite" else None


@contextmanager
def _exclusive(uri: str) -> Iterator[None]:
    """Prove that a database answers, and keep other openers out while MLflow makes its tables.

    MLflow itself tries a dead database for minutes, and breaks where two processes open a fresh one at once.
    """
    if (file := _sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot lock a directory
                fcntl.flock(directory, fcntl.LOCK_EX)
            with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            _refuse_run_store({name for (name,) in rows})
            yield
        finally:
            os.close(directory)
    elif uri.startswith("postgresql"):
        import psycopg2  # type: ignore[import-untyped]

        dsn = uri.replace("+psycopg2", "", 1)
        with closing(psycopg2.connect(dsn, connect_timeout=PROBE_TIMEOUT_S)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SELECT pg_advisory_lock(%s)", (_OPENING_LOCK,))
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            _refuse_run_store({name for (name,) in cursor.fetchall()})
            yield
    else:
        yield


def _refuse_run_store(tables: set[str]) -> None:
    """MLflow would mix its tables with the run store's, which have the same names, before it fails."""
    if "episodes" in tables and "experiments" not in tables:
        raise UserError("the tracking URI is the run database; give MLflow one of its own")


def _impatient(uri: str) -> Mapping[str, str]:
    if not uri.startswith("http"):
        return {}
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while: MLflow has no other way to say how long a request may take."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
