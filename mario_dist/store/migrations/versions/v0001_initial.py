"""Runs, episodes, metrics and checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _run_id(table: str) -> tuple[sa.Column[str], sa.ForeignKeyConstraint]:
    return (
        sa.Column("run_id", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=f"fk_{table}_run_id", ondelete="CASCADE"),
    )


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("agent_steps", sa.BigInteger, nullable=False),
        sa.Column("total_steps", sa.BigInteger, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("algo", sa.String, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("git_commit", sa.String),
        sa.Column("git_dirty", sa.Boolean, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("machine", sa.JSON, nullable=False),
        sa.Column("mlflow_run_id", sa.String),
        sa.Column("directory", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_created_at", "runs", ["created_at"])
    op.create_table(
        "episodes",
        *_run_id("episodes"),
        sa.Column("actor", sa.Integer, nullable=False),
        sa.Column("incarnation", sa.Integer, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("agent_steps", sa.BigInteger, nullable=False),
        sa.Column("weights_version", sa.BigInteger, nullable=False),
        sa.Column("lane", sa.Integer, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("world", sa.Integer, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("episode_return", sa.Double),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("x_pos_max", sa.Integer, nullable=False),
        sa.Column("score", sa.Integer, nullable=False),
        sa.Column("coins", sa.Integer, nullable=False),
        sa.Column("time_left", sa.Integer, nullable=False),
        sa.Column("life", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("flag_get", sa.Boolean, nullable=False),
        sa.Column("ended_by", sa.String, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "actor", "incarnation", "sequence", name="pk_episodes"),
    )
    op.create_index("ix_episodes_run_id_agent_steps", "episodes", ["run_id", "agent_steps"])
    op.create_table(
        "metrics",
        *_run_id("metrics"),
        sa.Column("agent_steps", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("wall_s", sa.Double, nullable=False),
        sa.Column("value", sa.Double),
        sa.PrimaryKeyConstraint("run_id", "agent_steps", "name", name="pk_metrics"),
    )
    op.create_index("ix_metrics_run_id_name_agent_steps", "metrics", ["run_id", "name", "agent_steps"])
    op.create_table(
        "checkpoints",
        *_run_id("checkpoints"),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("agent_steps", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("evaluation", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "path", name="pk_checkpoints"),
    )


def downgrade() -> None:
    for table in ("checkpoints", "metrics", "episodes", "runs"):
        op.drop_table(table)
