"""Alembic's entry: runs the migrations on the connection that ``schema.alembic_config`` was given."""

from alembic import context

from mario_dist.store.tables import metadata

# SQLite's DDL is transactional too, and the caller's transaction holds the lock that keeps others out.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
