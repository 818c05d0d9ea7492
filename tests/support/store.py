"""Run databases as tests find them: old ones, and rows of the audit."""

from alembic import command
from sqlalchemy import insert

from mario_dist.store import PromotionRow, RunRow, tables
from mario_dist.store.engine import open_engine
from mario_dist.store.rows import row_values
from mario_dist.store.schema import alembic_config


def make_of_revision(url: str, revision: str, run: RunRow | None = None) -> None:
    """A database as an earlier mario-dist left it, with a run."""
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), revision)
        if run is not None:
            connection.execute(insert(tables.runs).values(row_values(run)))
    engine.dispose()


def promotion(from_version: int | None, to_version: int | None, **changes: object) -> PromotionRow:
    values: dict[str, object] = {
        "model": "mario-1-1-ppo",
        "alias": "champion",
        "event": "promote",
        "from_version": from_version,
        "to_version": to_version,
        "moved": True,
        "verdict": "passed",
        "registry": "http://mlflow:5000",
    }
    return PromotionRow(**{**values, **changes})  # type: ignore[arg-type]


def assert_lines(texts: list[str]) -> None:
    """What a user reads, in a line each."""
    for line in texts:
        assert "\n" not in line
        assert len(line) < 400
