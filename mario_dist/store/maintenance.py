"""What an administrator asks of a run database: whether it is sound, and all of it as files."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import JSON, Boolean, Connection, Double, Engine, Integer, Table, func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from mario_dist.errors import UserError
from mario_dist.store import tables
from mario_dist.store.engine import clear_opening_errors, missing_file, open_engine
from mario_dist.store.schema import HEAD, alembic_config, migrate, revision_of
from mario_dist.store.tables import NanDouble, UtcDateTime

Format = Literal["parquet", "csv"]
_CHUNK_ROWS = 10_000
_BUSY_TIMEOUT_S = 30.0
_UPGRADE = "run 'mario-dist db upgrade'"


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """rows: of each table, where the schema is the newest. problems: what is wrong, in a line each."""

    where: str
    revision: str | None
    newest: str
    rows: dict[str, int]
    problems: list[str]


def upgrade_database(url: str) -> tuple[str, str | None, str]:
    """Bring a database to the newest schema: its name, and the revisions before and after.

    Raises ``UserError`` as ``RunStore`` does.
    """
    with _opened(url) as (engine, where):
        with engine.connect() as connection:
            before = revision_of(connection)
        migrate(engine, where)
        return where, before, HEAD


def check_database(url: str) -> DatabaseState:
    """Look for what is wrong, and change nothing. Raises ``UserError`` where it cannot be opened."""
    if (file := missing_file(url)) is not None:
        return DatabaseState(str(file), None, HEAD, {}, [f"it is not there: {_UPGRADE}"])
    with _opened(url) as (engine, where), engine.connect() as connection:
        revision = revision_of(connection)
        if revision != HEAD:
            found = "has no tables" if revision is None else f"has the schema {revision}, not {HEAD}"
            return DatabaseState(where, revision, HEAD, {}, [f"it {found}: {_UPGRADE}"])
        rows: dict[str, int] = {}
        looks = (_damage, _drift, _orphans, _gaps, partial(_count, rows))
        problems = [line for look in looks for line in _found(look, connection)]
        return DatabaseState(where, revision, HEAD, rows, list(dict.fromkeys(problems)))


def export_database(url: str, directory: Path, format: Format, run_id: str | None) -> dict[Path, int]:
    """All tables, or their rows of one run, as one Parquet or CSV file each: the files and their rows.

    Of one moment, however long it takes. Nested values are JSON text. Raises ``UserError`` where the database
    is not at the newest schema or the directory cannot be written.
    """
    if (file := missing_file(url)) is not None:
        raise UserError(f"there is no run database {file}")
    with _opened(url) as (engine, where):
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with engine.connect() as connection:
            if revision_of(connection) != HEAD:
                raise UserError(f"{where} is not at the newest schema: {_UPGRADE}")
            try:
                directory.mkdir(parents=True, exist_ok=True)
                return dict(
                    _export_table(connection, table, directory, format, run_id)
                    for table in tables.metadata.sorted_tables
                )
            except OSError as error:
                raise UserError(f"cannot write to {directory}: {error.strerror}") from error


@contextmanager
def _opened(url: str) -> Iterator[tuple[Engine, str]]:
    """An engine and its database's name, with errors that are lines for the user."""
    engine, where = open_engine(url, _BUSY_TIMEOUT_S)
    try:
        with clear_opening_errors(engine, where):
            yield engine, where
    finally:
        engine.dispose()


def _found(look: Callable[[Connection], Iterator[str]], connection: Connection) -> list[str]:
    """What a look finds, in a line each. Where it cannot look, that is a find too."""
    found: list[str] = []
    try:
        with connection.begin_nested():  # PostgreSQL ends the transaction in which a query failed
            found.extend(look(connection))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        found.append(f"it cannot be read: {str(error.orig).splitlines()[0]}")
    return [" ".join(line.split()) for line in found]


def _drift(connection: Connection) -> Iterator[str]:
    """Where tables are not as the migrations made them. Others may be beside them."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    alembic_config(connection)  # quiets its logger
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_name": lambda name, kind, _: kind != "table" or name in tables.metadata.tables,
        },
    )
    for difference in compare_metadata(context, tables.metadata):
        yield f"its tables are not as they were made: {str(difference)[:200]}"


def _damage(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        for (line,) in connection.execute(text("PRAGMA integrity_check")):
            if line != "ok":
                yield f"the file is damaged: {line}"


def _orphans(connection: Connection) -> Iterator[str]:
    for table in _present(connection):
        for key in table.foreign_keys:
            orphan = key.parent.is_not(None) & key.parent.not_in(select(tables.runs.c.id))
            if count := connection.scalar(select(func.count()).select_from(table).where(orphan)):
                yield f"{table.name} has {count:,} rows of runs that are not there"


def _gaps(connection: Connection) -> Iterator[str]:
    """Where the audit has lost a row, or two do not fit together."""
    table = tables.promotions
    unknown = object()  # until the first move: a refusal's ``from_version`` may be no move's
    numbers: dict[tuple[str, str], int] = {}
    holders: dict[tuple[str, str, str], object] = {}
    names = ("model", "alias", "registry", "number", "from_version", "to_version", "moved")
    rows = select(*(table.c[name] for name in names)).order_by(*table.primary_key)
    for model, alias, registry, number, before, after, moved in connection.execute(rows):
        last = numbers.get((model, alias), 0)
        held = holders.get((model, alias, registry), unknown)
        if number != last + 1 or (moved and held not in (unknown, before)):
            yield f"the audit of {model}@{alias} does not lead from row {last} to row {number}"
        numbers[model, alias] = number
        holders[model, alias, registry] = after if moved else held


def _count(rows: dict[str, int], connection: Connection) -> Iterator[str]:
    for table in _present(connection):
        rows[table.name] = connection.scalar(select(func.count()).select_from(table)) or 0
    yield from ()


def _present(connection: Connection) -> list[Table]:
    """The tables that are there: of others, ``_drift`` tells."""
    names = inspect(connection).get_table_names()
    return [table for table in tables.metadata.sorted_tables if table.name in names]


def _export_table(
    connection: Connection, table: Table, directory: Path, format: Format, run_id: str | None
) -> tuple[Path, int]:
    query = select(table).order_by(*table.primary_key)
    if run_id is not None:
        query = query.where((table.c.id if table is tables.runs else table.c.run_id) == run_id)
    path = directory / f"{table.name}.{format}"
    write = _write_parquet if format == "parquet" else _write_csv
    result = connection.execution_options(yield_per=_CHUNK_ROWS).execute(query)
    part = path.with_name(f"{path.name}.part")  # half a file would look like a whole one
    try:
        count = write(part, table, (list(map(tuple, chunk)) for chunk in result.partitions()))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path, count


def _write_csv(path: Path, table: Table, chunks: Iterator[list[tuple[Any, ...]]]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns.keys())
        for rows in chunks:
            count += len(rows)
            writer.writerows([[_text(value) for value in row] for row in rows])
    return count


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _write_parquet(path: Path, table: Table, chunks: Iterator[list[tuple[Any, ...]]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(column: Any) -> Any:
        match column.type:
            case UtcDateTime():
                return pa.timestamp("us", tz="UTC")
            case NanDouble() | Double():
                return pa.float64()
            case Boolean():
                return pa.bool_()
            case Integer():
                return pa.int64()
            case _:
                return pa.string()

    schema = pa.schema([(column.name, arrow(column)) for column in table.columns])
    nested = {i for i, column in enumerate(table.columns) if isinstance(column.type, JSON)}
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for rows in chunks:
            count += len(rows)
            writer.write_table(pa.table(list(_columns(rows, nested)), schema=schema))
    return count


def _columns(rows: Sequence[tuple[Any, ...]], nested: set[int]) -> Iterator[list[Any]]:
    for index, values in enumerate(zip(*rows, strict=True)):
        if index in nested:
            yield [None if value is None else json.dumps(value) for value in values]
        else:
            yield list(values)
