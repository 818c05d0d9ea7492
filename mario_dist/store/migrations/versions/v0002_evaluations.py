"""Evaluations of checkpoints by protocols."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_evaluations_run_id", ondelete="CASCADE"),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("protocol", sa.String, nullable=False),
        sa.Column("agent_steps", sa.BigInteger, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "path", "protocol", name="pk_evaluations"),
    )


def downgrade() -> None:
    op.drop_table("evaluations")
