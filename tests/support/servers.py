"""Real servers for tests: PostgreSQL and MLflow."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine, make_url, text

from mario_dist.bench.mlflow_server import MLflowServer
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


@contextmanager
def mlflow_server(directory: Path, backend: str) -> Iterator[MLflowServer]:
    """A real server, which takes seconds to start: wait for it where it is needed."""
    server = MLflowServer(directory, backend)
    try:
        yield server
    finally:
        server.kill()
