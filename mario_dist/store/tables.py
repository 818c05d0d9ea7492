"""The tables of the run store, and the types that make SQLite and PostgreSQL keep the same values.

A change here needs a migration in ``migrations/versions``; a test compares the two.
"""

import math
from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time. SQLite keeps no timezone, and PostgreSQL answers in the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no timezone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class NanDouble(TypeDecorator[float]):
    """A float that may be NaN, stored as NULL: SQLite has no NaN, and a loss that diverged must be kept."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else value

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _run_id() -> Column[str]:
    return Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("seed", BigInteger, nullable=False),
    Column("agent_steps", BigInteger, nullable=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("level", String, nullable=False),
    Column("algo", String, nullable=False),
    Column("config", JSON, nullable=False),
    Column("git_commit", String),
    Column("git_dirty", Boolean, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("machine", JSON, nullable=False),
    Column("mlflow_run_id", String),
    Column("directory", String, nullable=False),
)

episodes = Table(
    "episodes",
    metadata,
    _run_id(),
    Column("actor", Integer, primary_key=True, autoincrement=False),
    Column("incarnation", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("agent_steps", BigInteger, nullable=False),
    Column("weights_version", BigInteger, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("level", String, nullable=False),
    Column("world", Integer, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("episode_return", NanDouble),
    Column("length", BigInteger, nullable=False),
    Column("x_pos_max", Integer, nullable=False),
    Column("score", Integer, nullable=False),
    Column("coins", Integer, nullable=False),
    Column("time_left", Integer, nullable=False),
    Column("life", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("flag_get", Boolean, nullable=False),
    Column("ended_by", String, nullable=False),
    Column("seconds", Double, nullable=False),
    Index(None, "run_id", "agent_steps"),  # the newest episodes, and rewind
)

metrics = Table(
    "metrics",
    metadata,
    _run_id(),
    Column("agent_steps", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String, primary_key=True),
    Column("wall_s", Double, nullable=False),
    Column("value", NanDouble),
    Index(None, "run_id", "name", "agent_steps"),  # one curve
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _run_id(),
    Column("path", String, primary_key=True),
    Column("agent_steps", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("evaluation", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    _run_id(),
    Column("path", String, primary_key=True),
    Column("protocol", String, primary_key=True),
    Column("agent_steps", BigInteger, nullable=False),
    Column("report", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("model", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("event", String, nullable=False),
    Column("actor", String),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Column("moved", Boolean, nullable=False),
    Column("verdict", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("run_id", ForeignKey("runs.id", ondelete="SET NULL"), index=True),
    Column("registry", String, nullable=False),
    Column("report", JSON(none_as_null=True)),
)
"""The audit: what happened to an alias of a registered model, numbered from 1 without a gap."""
