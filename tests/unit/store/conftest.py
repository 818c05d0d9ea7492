"""One empty database per test, in SQLite and in a real PostgreSQL."""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.servers import new_database, postgres_server
from support.store import promotion

from mario_dist.store import CheckpointRow, EvaluationRow, RunRow, RunStore
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


@pytest.fixture
def fill(make_run: Callable[..., RunRow], record: Callable[..., EpisodeRecord]) -> Callable[[str], None]:
    """Two runs, and something in every table: with text, times, nothing and numbers that are none."""

    def fill(url: str) -> None:
        noon = datetime(2026, 3, 1, 12, 0, 0, 789, tzinfo=UTC)
        odd = 'Größe, 马里奥 🍄\nline "two"\r\n'
        report = {"clear_rate": 0.1 + 0.2, "x": {"mean": None, "Ω": [1, odd]}}
        with RunStore(url) as store:
            for n, run_id in enumerate(("r1", "r2")):
                ended: dict[str, object] = {"ended_at": noon, "git_commit": None, "name": odd} if n else {}
                store.create_run(make_run(run_id, seed=2**40, created_at=noon + timedelta(days=n), **ended))
                records = [
                    record(0),
                    record(1, episode_return=math.nan, flag_get=True),
                    record(2**33, x_pos_max=5),
                ]
                store.add_episodes(run_id, 10, records)
                store.add_metrics(run_id, 10, 0.5, {"a": 0.1 + 0.2, "b": math.inf, "c": math.nan, odd: -0.0})
                for path, evaluation in (("p1", None), (odd, report)):
                    row = CheckpointRow(
                        agent_steps=10, path=path, kind="best", evaluation=evaluation, created_at=noon
                    )
                    store.add_checkpoint(run_id, row)
                store.add_evaluation(
                    run_id,
                    EvaluationRow(agent_steps=10, path="p1", protocol="{}", report=report, created_at=noon),
                )
                store.add_promotion(promotion(n or None, n + 1, run_id=run_id, report=report, reason=odd))
            store.add_promotion(promotion(2, 3, moved=False, verdict="failed", actor="ada@laptop"))

    return fill
