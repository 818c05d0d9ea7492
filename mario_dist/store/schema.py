"""Bring a database to the newest schema, once, however many processes open it at the same time."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, false, func, inspect, select, text, update

from mario_dist.errors import UserError
from mario_dist.store.tables import runs

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The newest revision in ``migrations/versions``. Known here so that opening a database that is at it needs
no Alembic, which costs more than the rest of the opening."""

_MIGRATION_LOCK = 0x6D6172696F  # "mario": any number that no other program's advisory lock has


def alembic_config(connection: Connection) -> "Config":
    """Alembic's configuration for commands on ``connection``, whose transaction the caller commits."""
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    location = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", location.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(engine: Engine, where: str) -> None:
    """Upgrade to ``HEAD``. ``where`` names the database in messages.

    Raises ``UserError`` where the database belongs to a newer mario-dist or to MLflow.
    """
    # IMMEDIATE takes SQLite's write lock first, so that a second opener waits and then finds the tables.
    with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if revision_of(connection) == HEAD:
            # A database that cannot be written is refused now, not in the middle of a training.
            connection.execute(update(runs).where(false()).values(status=runs.c.status))
            return
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        revision = revision_of(connection)
        if revision != HEAD:
            _upgrade(connection, revision, where)


def revision_of(connection: Connection) -> str | None:
    """A database's revision; None where it has no tables of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade(connection: Connection, revision: str | None, where: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        if inspect(connection).has_table("experiments"):
            raise UserError(f"{where} is MLflow's database; give mario-dist one of its own (MARIO_DIST_DB)")
        raise UserError(
            f"{where} was written by a newer mario-dist (schema {revision}, this one knows {HEAD}); "
            "upgrade mario-dist, or set MARIO_DIST_DB to another database"
        )
    command.upgrade(config, "head")
