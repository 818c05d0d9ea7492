"""One empty database per test, in SQLite and in a real PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.servers import new_database, postgres_server

from mario_dist.store import RunRow, RunStore
from mario_dist.types import Episode, EpisodeRecord


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    with new_database(postgres_url) as url:
        yield url


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
