"""The audit of registered models' aliases."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "promotions",
        sa.Column("model", sa.String, nullable=False),
        sa.Column("alias", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("actor", sa.String),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer),
        sa.Column("moved", sa.Boolean, nullable=False),
        sa.Column("verdict", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("run_id", sa.String),
        sa.Column("registry", sa.String, nullable=False),
        sa.Column("report", sa.JSON),
        sa.PrimaryKeyConstraint("model", "alias", "number", name="pk_promotions"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_promotions_run_id", ondelete="SET NULL"),
    )
    op.create_index("ix_promotions_run_id", "promotions", ["run_id"])


def downgrade() -> None:
    op.drop_table("promotions")
