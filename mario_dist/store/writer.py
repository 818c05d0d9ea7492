"""Writes to the run store off the hot path, through a journal that bears the database's absence."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from mario_dist.errors import UserError
from mario_dist.store.engine import StoreUnavailable
from mario_dist.store.journal import Journal, discard_segment, read_segment, segments
from mario_dist.store.rows import (
    CheckpointRow,
    Rows,
    RunChanges,
    episode_values,
    metric_values,
    row_values,
)
from mario_dist.store.run_store import RunStore
from mario_dist.types import EpisodeRecord

BATCH_ROWS = 5000
"""In one transaction, about."""

_log = logging.getLogger(__name__)


class StoreWriter:
    """Takes a run's rows at once, and brings them to the database in batches, each in one transaction.

    A call appends to the journal and returns; a thread empties that into the database about ``linger_s``
    later, or at ``flush``. While the database is away the journal grows, and the thread tries again after
    pauses that double from ``backoff_s[0]`` to ``backoff_s[1]`` seconds. Rows are upserts, so what a killed
    process had written already is written again and there once. A failure that is not the database's absence
    is kept, and every later call raises it.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        journal: Path,
        *,
        linger_s: float = 0.25,
        backoff_s: tuple[float, float] = (0.1, 5.0),
        patience_s: float = 10.0,
    ) -> None:
        """Go on with the folder ``journal``. ``patience_s``: how long ``flush`` and ``close`` wait for a
        database that does not answer. Raises ``UserError`` where the folder cannot be made."""
        self._store = store
        self._run_id = run_id
        self._journal = Journal(journal)
        self._linger_s = linger_s
        self._backoff_s = backoff_s
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._accepted = 1 if self._journal.sealed() else 0  # what an earlier process left
        self._durable = 0
        self._flush_until = 0
        self._away = False
        self._closed = False
        self._given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def episodes(self, agent_steps: int, records: Sequence[EpisodeRecord]) -> None:
        """Finished episodes."""
        self._put(Rows(episodes=[episode_values(agent_steps, record) for record in records]))

    def metrics(self, agent_steps: int, wall_s: float, values: Mapping[str, float]) -> None:
        """Training metrics."""
        self._put(Rows(metrics=metric_values(agent_steps, wall_s, values)))

    def checkpoint(self, row: CheckpointRow) -> None:
        self._put(Rows(checkpoints=[row_values(row)]))

    def run(self, **changes: Unpack[RunChanges]) -> None:
        """Change the run's own row."""
        self._put(Rows(run=changes))

    def flush(self) -> None:
        """Wait until everything so far is in the database or, where that is away, safe in the journal.

        Raises what the writes met.
        """
        with self._changed:
            target = self._flush_until = self._accepted
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._durable >= target or self._error is not None or self._away, self._patience_s
            )
            self._raise_error()
            if self._durable < target:
                # It may hang: the next flush does not wait for it again.
                self._is_away(f"the run database {self._store.where} does not answer")
                self._journal.sync()

    def close(self) -> bool:
        """Flush and end the thread. False where rows are left in the journal, for ``replay`` to write.

        Raises what the writes met.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._patience_s)
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        self._thread.join(1.0)  # it may wait for an answer for ever; the process ends without it
        self._journal.sync()
        self._raise_error()
        with self._changed:
            self._journal.close()
        return not segments(self._journal.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, rows: Rows) -> None:
        with self._changed:
            self._raise_error()
            if self._closed:
                raise RuntimeError("the store writer is closed")
            if len(rows):
                self._journal.append(rows)
                self._accepted += 1
                self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while sealed := self._seal():
                if not self._empty_journal():
                    return
                with self._changed:
                    self._durable = sealed
                    self._changed.notify_all()
        except BaseException as error:  # this thread has no one to raise to: the next call does
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _seal(self) -> int:
        """Wait for rows, and a little for more, and seal them. How many calls were accepted so far; 0 when
        the writer is closed and all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._accepted > self._durable or self._closed)
            self._changed.wait_for(
                lambda: self._closed or self._flush_until > self._durable, timeout=self._linger_s
            )
            self._journal.seal()
            return self._accepted if self._accepted > self._durable else 0

    def _empty_journal(self) -> bool:
        """Bring every sealed segment to the database, however long it is away; False where given up."""
        pause_s, longest_s = self._backoff_s
        since = time.monotonic()
        for path in self._journal.sealed():
            while not self._try_write(path):
                if self._pause(pause_s):
                    return False
                pause_s = min(2 * pause_s, longest_s)
        if self._away:
            self._away = False
            _log.warning(
                "the run database is back, after %.0f s, and has every row", time.monotonic() - since
            )
        return True

    def _try_write(self, segment: Path) -> bool:
        try:
            write_segment(self._store, self._run_id, segment)
        except StoreUnavailable as error:
            with self._changed:
                self._is_away(str(error))
            return False
        return True

    def _is_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            _log.warning("%s; until it is back, rows wait in %s", why, self._journal.directory)
        self._changed.notify_all()

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try. Whether it was given up."""
        with self._changed:
            return self._changed.wait_for(lambda: self._given_up, seconds)


def write_segment(store: RunStore, run_id: str, segment: Path) -> int:
    """Bring a sealed segment to the database and remove it. Returns its rows.

    Raises ``StoreUnavailable`` where the database is away; what it has by then, it will get again.
    """
    count = damaged = 0
    batch = Rows()
    for rows in read_segment(segment):
        if rows is None:
            damaged += 1
            continue
        batch.extend(rows)
        if len(batch) >= BATCH_ROWS:
            store.write(run_id, batch)
            count += len(batch)
            batch = Rows()
    if len(batch):
        store.write(run_id, batch)
    discard_segment(segment, damaged)
    return count + len(batch)


def replay(store: RunStore, run_id: str, journal: Path) -> int:
    """Bring what a dead process left in its journal to the database. Returns the rows.

    Raises ``StoreUnavailable`` where the database is away, and ``UserError`` where it has no such run or
    refuses a row.
    """
    found = segments(journal)
    if not found:
        return 0
    if store.find_run(run_id) is None:
        raise UserError(f"there is no run {run_id!r} in {store.where}")
    count = 0
    for segment in found:
        try:
            count += write_segment(store, run_id, segment)
        except (UserError, OSError):
            raise
        except Exception as error:  # a row that no database takes, and drivers each say so in their own way
            why = " ".join(str(getattr(error, "orig", error)).split())
            raise UserError(
                f"{store.where} refuses rows of {segment} ({why}); move that file away to go on without them"
            ) from error
    Journal(journal).close()
    return count
