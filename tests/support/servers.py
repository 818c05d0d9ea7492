"""Real servers for tests: PostgreSQL and MLflow."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from mario_dist.bench.postgres import temporary_postgres
from mario_dist.store import normalise_url

START_TIMEOUT_S = 120


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server: ``TEST_DATABASE_URL``, or the one that the dev dependency brings."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield normalise_url(url)
        return
    with temporary_postgres() as server:
        yield normalise_url(server.url)


@contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """The URL of an empty database of its own on a server."""
    name = f"mario_test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def drop_connections(connection: Connection) -> None:
    """Break all others to the database of this connection, as a server that is shut down does."""
    connection.execute(
        text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    )


@dataclass(frozen=True)
class MLflowServer:
    """A server that may still be starting. artifacts: where it keeps the files of models."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    artifacts: Path

    def wait(self) -> str:
        """Its URL, once it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self.url
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"mlflow server did not start: {self.log.read_text()[-2000:]}")


@contextmanager
def mlflow_server(directory: Path, backend: str) -> Iterator[MLflowServer]:
    """A real server on a free port, which takes seconds to start: wait for it where it is needed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    artifacts = directory / "artifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", backend, "--artifacts-destination", str(artifacts)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts workers, which end with it
        )
    yield MLflowServer(process, f"http://127.0.0.1:{port}", directory / "log", artifacts)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
