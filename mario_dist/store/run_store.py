"""What the system asks of its run database, as plain functions on one ``RunStore``."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self, Unpack, cast

from sqlalchemy import Connection, Result, Table, case, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from mario_dist.errors import UserError
from mario_dist.store import locks, tables
from mario_dist.store.engine import clear_errors, clear_opening_errors, open_engine
from mario_dist.store.rows import (
    CheckpointRow,
    EpisodeRow,
    EpisodeSummary,
    EvaluationRow,
    MetricRow,
    PromotionRow,
    Rows,
    RunChanges,
    RunRow,
    episode_values,
    metric_values,
    row_values,
    utc_now,
)
from mario_dist.store.schema import migrate
from mario_dist.types import EpisodeRecord

RECENT_EPISODES = 100

_EPISODES = tables.episodes
_ORDER = (_EPISODES.c.agent_steps, _EPISODES.c.actor, _EPISODES.c.incarnation, _EPISODES.c.sequence)


class RunStore:
    """The runs of a machine or a cluster in one SQLite or PostgreSQL database. Threads may share it.

    Opening creates and upgrades the tables. Every method raises ``StoreUnavailable`` (a ``UserError``) where
    the database is away, locked for longer than ``busy_timeout_s`` (SQLite only), full or read-only.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 30.0) -> None:
        """Raises ``UserError`` for a bad URL, an unreachable or unwritable database, or a newer schema."""
        self._engine, self.where = open_engine(url, busy_timeout_s)
        try:
            with clear_opening_errors(self._engine, self.where):
                migrate(self._engine, self.where)
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    # Runs

    def create_run(self, run: RunRow) -> None:
        with self._write() as connection:
            connection.execute(insert(tables.runs).values(row_values(run)))

    def get_run(self, ref: str) -> RunRow:
        """The run with this id, the one whose id begins so, or the newest for ``latest``.

        Raises ``UserError`` where there is none, or more than one.
        """
        newest_first = tables.runs.c.created_at.desc(), tables.runs.c.id.desc()
        with self._read() as connection:
            ids = connection.scalars(select(tables.runs.c.id).order_by(*newest_first)).all()
            run_id = resolve(ref, ids)
            row = connection.execute(select(tables.runs).where(tables.runs.c.id == run_id)).one()
        return RunRow(**row._mapping)

    def list_runs(self, limit: int | None = None) -> list[RunRow]:
        """All runs, newest first."""
        runs = tables.runs
        with self._read() as connection:
            rows = connection.execute(
                select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
            )
            return [RunRow(**row._mapping) for row in rows]

    def find_run(self, run_id: str | None) -> RunRow | None:
        """The run with exactly this id; None where there is none."""
        with self._read() as connection:
            row = connection.execute(select(tables.runs).where(tables.runs.c.id == run_id)).one_or_none()
        return None if row is None else RunRow(**row._mapping)

    def update_run(self, run_id: str, **changes: Unpack[RunChanges]) -> None:
        """Change what is given, and ``updated_at``. ``ended_at`` follows ``status`` unless it is given.

        Raises ``UserError`` for an unknown run.
        """
        with self._write() as connection:
            self._change_run(connection, run_id, changes)

    def rewind(self, run_id: str, agent_steps: int) -> int:
        """Forget what came after ``agent_steps``, which a resume does again. Returns the rows deleted."""
        with self._write() as connection:
            deleted = 0
            for table in (tables.episodes, tables.metrics, tables.checkpoints, tables.evaluations):
                later = (table.c.run_id == run_id) & (table.c.agent_steps > agent_steps)
                deleted += connection.execute(delete(table).where(later)).rowcount
            ahead = (tables.runs.c.id == run_id) & (tables.runs.c.agent_steps > agent_steps)
            connection.execute(update(tables.runs).where(ahead).values(agent_steps=agent_steps))
        return deleted

    # What a run leaves behind

    def write(self, run_id: str, rows: Rows) -> None:
        """All of ``rows`` in one transaction.

        Rows that are there already are replaced, so that doing it again changes nothing.
        """
        with self._write() as connection:
            for table, values in (
                (tables.episodes, rows.episodes),
                (tables.metrics, rows.metrics),
                (tables.checkpoints, rows.checkpoints),
            ):
                _upsert(connection, table, [{"run_id": run_id, **row} for row in values])
            if rows.run:
                self._change_run(connection, run_id, rows.run)

    def add_episodes(self, run_id: str, agent_steps: int, records: Sequence[EpisodeRecord]) -> None:
        self.write(run_id, Rows(episodes=[episode_values(agent_steps, record) for record in records]))

    def add_metrics(self, run_id: str, agent_steps: int, wall_s: float, values: Mapping[str, float]) -> None:
        self.write(run_id, Rows(metrics=metric_values(agent_steps, wall_s, values)))

    def add_checkpoint(self, run_id: str, checkpoint: CheckpointRow) -> None:
        self.write(run_id, Rows(checkpoints=[row_values(checkpoint)]))

    def checkpoints(self, run_id: str) -> list[CheckpointRow]:
        """A run's checkpoints, oldest first. Their files may have been pruned since."""
        table = tables.checkpoints
        columns = [table.c[f.name] for f in fields(CheckpointRow)]
        query = select(*columns).where(table.c.run_id == run_id).order_by(table.c.agent_steps, table.c.path)
        with self._read() as connection:
            return [CheckpointRow(**row._mapping) for row in connection.execute(query)]

    def add_evaluation(self, run_id: str, evaluation: EvaluationRow) -> None:
        """Keep what a protocol said of a checkpoint; of the same protocol, what it says now."""
        with self._write() as connection:
            _upsert(connection, tables.evaluations, [{"run_id": run_id, **row_values(evaluation)}])

    def evaluations(self, run_id: str) -> list[EvaluationRow]:
        """A run's evaluations by ``mario-dist eval``, by agent steps and then by time."""
        table = tables.evaluations
        columns = [table.c[f.name] for f in fields(EvaluationRow)]
        query = select(*columns).where(table.c.run_id == run_id)
        with self._read() as connection:
            rows = connection.execute(query.order_by(table.c.agent_steps, table.c.created_at))
            return [EvaluationRow(**row._mapping) for row in rows]

    def episodes(self, run_id: str, since_steps: int = 0) -> list[EpisodeRow]:
        """A run's episodes at or after ``since_steps`` agent steps, oldest first."""
        names = {"ended_by": "end"}
        columns = [c.label(names.get(c.name, c.name)) for c in _EPISODES.c if c.name != "run_id"]
        wanted = (_EPISODES.c.run_id == run_id) & (_EPISODES.c.agent_steps >= since_steps)
        with self._read() as connection:
            rows = connection.execute(select(*columns).where(wanted).order_by(*_ORDER))
            return cast(list[EpisodeRow], _dicts(rows))

    def episode_columns(self, run_id: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """These values of a run's ``EpisodeRow``s, oldest first: whole ones of a long run take gigabytes."""
        columns = [_EPISODES.c["ended_by" if name == "end" else name] for name in names]
        query = select(*columns).where(_EPISODES.c.run_id == run_id).order_by(*_ORDER)
        with self._read() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def episode_summary(self, run_id: str) -> EpisodeSummary:
        """A run's episodes in a few numbers, computed by the database."""
        c = _EPISODES.c
        recent = (
            select(c.x_pos_max, c.episode_return)
            .where(c.run_id == run_id)
            .order_by(*(column.desc() for column in _ORDER))
            .limit(RECENT_EPISODES)
            .subquery()
        )
        overall = select(
            func.count(), func.coalesce(func.sum(case((c.flag_get, 1), else_=0)), 0), func.max(c.x_pos_max)
        ).where(c.run_id == run_id)
        with self._read() as connection:
            count, flags, best_x = connection.execute(overall).one()
            mean_x, mean_return = connection.execute(
                select(func.avg(recent.c.x_pos_max), func.avg(recent.c.episode_return))
            ).one()
        return EpisodeSummary(
            count=count,
            flags=flags,
            best_x=best_x,
            mean_x_last_100=None if mean_x is None else float(mean_x),
            mean_return_last_100=None if mean_return is None else float(mean_return),
        )

    def metrics(self, run_id: str, names: Iterable[str] | None = None) -> list[MetricRow]:
        """A run's metrics, all or those named, by agent steps and then by name."""
        table = tables.metrics
        query = select(table.c.agent_steps, table.c.wall_s, table.c.name, table.c.value).where(
            table.c.run_id == run_id
        )
        if names is not None:
            query = query.where(table.c.name.in_(list(names)))
        with self._read() as connection:
            rows = connection.execute(query.order_by(table.c.agent_steps, table.c.name))
            return cast(list[MetricRow], _dicts(rows))

    def newest_metrics(self, run_id: str) -> list[MetricRow]:
        """The metrics of a run's newest report."""
        table = tables.metrics
        newest = select(func.max(table.c.agent_steps)).where(table.c.run_id == run_id).scalar_subquery()
        query = select(table.c.agent_steps, table.c.wall_s, table.c.name, table.c.value).where(
            (table.c.run_id == run_id) & (table.c.agent_steps == newest)
        )
        with self._read() as connection:
            return cast(list[MetricRow], _dicts(connection.execute(query)))

    # The audit of registered models

    @contextmanager
    def exclusive(self, name: str, timeout_s: float = 60.0) -> Iterator[None]:
        """Hold a name that one process of this database at a time may hold, see ``locks.exclusive``."""
        with clear_errors(self._engine, self.where), locks.exclusive(self._engine, name, timeout_s):
            yield

    def add_promotion(self, row: PromotionRow) -> PromotionRow:
        """Keep what happened to an alias, with the next number of that alias, which is returned with it.

        The run is left out where it is not in this store.
        """
        table = tables.promotions
        with self._write() as connection:
            newest = select(func.max(table.c.number)).where(
                (table.c.model == row.model) & (table.c.alias == row.alias)
            )
            known = connection.scalar(select(tables.runs.c.id).where(tables.runs.c.id == row.run_id))
            row = replace(row, number=(connection.scalar(newest) or 0) + 1, run_id=known)
            connection.execute(insert(table).values(row_values(row)))
        return row

    def promotions(self, model: str | None = None, alias: str | None = None) -> list[PromotionRow]:
        """The audit of a model's alias, oldest first; of every alias or model where none is given."""
        table = tables.promotions
        order = [table.c.at, table.c.model, table.c.alias, table.c.number]
        if model is not None and alias is not None:
            order = [table.c.number]  # the clocks of several machines differ
        query = select(*(table.c[f.name] for f in fields(PromotionRow)))
        query = query if model is None else query.where(table.c.model == model)
        query = query if alias is None else query.where(table.c.alias == alias)
        with self._read() as connection:
            rows = connection.execute(query.order_by(*order))
            return [PromotionRow(**row._mapping) for row in rows]

    def _change_run(self, connection: Connection, run_id: str, changes: RunChanges) -> None:
        values: dict[str, object] = {**changes, "updated_at": utc_now()}
        if "status" in changes:
            values.setdefault("ended_at", None if changes["status"] == "running" else values["updated_at"])
        result = connection.execute(update(tables.runs).where(tables.runs.c.id == run_id).values(values))
        if result.rowcount == 0:
            raise UserError(f"there is no run {run_id!r} in {self.where}")

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with clear_errors(self._engine, self.where), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        # SQLite waits for another writer at BEGIN IMMEDIATE, but not where a reader becomes a writer.
        engine = self._engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        with clear_errors(self._engine, self.where), engine.begin() as connection:
            yield connection


def resolve(ref: str, ids_newest_first: Sequence[str]) -> str:
    """The run id that ``ref`` means. Raises ``UserError`` where there is none, or more than one."""
    if not ids_newest_first:
        raise UserError(f"there is no run {ref!r}: no run has been stored yet; 'mario-dist train' makes one")
    if ref in ids_newest_first:
        return ref
    if ref == "latest":
        return ids_newest_first[0]
    matches = [run_id for run_id in ids_newest_first if ref and run_id.startswith(ref)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
        raise UserError(f"run {ref!r} is ambiguous: {', '.join(matches[:3])}{more}")
    near = difflib.get_close_matches(ref, ids_newest_first, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the newest is {ids_newest_first[0]}"
    raise UserError(f"there is no run {ref!r}; {hint} ('mario-dist runs list' shows all)")


def _dicts(rows: Result[Any]) -> list[dict[str, Any]]:
    """Rows by their columns' names. ``dict(row._mapping)`` takes half as long again."""
    names = tuple(rows.keys())
    return [dict(zip(names, row, strict=True)) for row in rows]


def _upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert, or replace where the primary key is there already; the last of equal keys wins."""
    if not rows:
        return
    keys = [column.name for column in table.primary_key]
    # PostgreSQL refuses to replace a row twice in one statement.
    rows = list({tuple(row[key] for key in keys): row for row in rows}.values())
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = make(table)
    replaced = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    statement = statement.on_conflict_do_update(index_elements=keys, set_=replaced)
    connection.execute(statement, rows)
