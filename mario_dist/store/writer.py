"""Writes to the run store off the hot path: a bounded queue and one thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mario_dist.store.engine import StoreUnavailable
from mario_dist.store.run_store import RunStore
from mario_dist.types import EpisodeRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Episodes:
    agent_steps: int
    records: tuple[EpisodeRecord, ...]


@dataclass(frozen=True, slots=True)
class _Metrics:
    agent_steps: int
    wall_s: float
    values: Mapping[str, float]


class StoreWriter:
    """Takes episodes and metrics at once and makes them durable in batches, each in one transaction.

    A full queue (``capacity`` calls) blocks the caller. A write that the database refuses is tried again
    after each of ``retry_s`` seconds; then, or for any other failure, the error is kept and every later call
    raises it. Rows are on disk after ``flush`` or ``close``, and else about ``linger_s`` after the call.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        *,
        capacity: int = 1024,
        linger_s: float = 0.25,
        retry_s: Sequence[float] = (0.1, 0.5, 2.0, 5.0, 15.0),
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._capacity = capacity
        self._linger_s = linger_s
        self._retry_s = tuple(retry_s)
        self._changed = threading.Condition()
        self._pending: deque[_Episodes | _Metrics] = deque()
        self._accepted = 0
        self._durable = 0
        self._flush_until = 0
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def episodes(self, agent_steps: int, records: Sequence[EpisodeRecord]) -> None:
        """Queue finished episodes. Raises what an earlier write met."""
        if records:
            self._put(_Episodes(agent_steps, tuple(records)))

    def metrics(self, agent_steps: int, wall_s: float, values: Mapping[str, float]) -> None:
        """Queue training metrics. Raises what an earlier write met."""
        if values:
            self._put(_Metrics(agent_steps, wall_s, dict(values)))

    def flush(self) -> None:
        """Wait until everything queued so far is durable. Raises what the writes met."""
        with self._changed:
            target = self._flush_until = self._accepted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._durable >= target or self._error is not None)
            self._raise_error()

    def close(self) -> None:
        """Flush and end the thread. Raises what the writes met."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, item: _Episodes | _Metrics) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._pending) < self._capacity or self._closed or self._error is not None
            )
            self._raise_error()
            if self._closed:
                raise RuntimeError("the store writer is closed")
            self._pending.append(item)
            self._accepted += 1
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._write(batch)
                with self._changed:
                    self._durable += len(batch)
                    self._changed.notify_all()
        except BaseException as error:  # this thread has no one to raise to: the next call does
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take(self) -> list[_Episodes | _Metrics]:
        """Wait for work, and a little for more of it. Empty when the writer is closed and all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            self._changed.wait_for(
                lambda: (
                    self._closed or self._flush_until > self._durable or len(self._pending) >= self._capacity
                ),
                timeout=self._linger_s,
            )
            batch = list(self._pending)
            self._pending.clear()
            self._changed.notify_all()
            return batch

    def _write(self, batch: Sequence[_Episodes | _Metrics]) -> None:
        episodes = [(i.agent_steps, r) for i in batch if isinstance(i, _Episodes) for r in i.records]
        metrics = [(i.agent_steps, i.wall_s, i.values) for i in batch if isinstance(i, _Metrics)]
        for wait_s in self._retry_s:
            try:
                return self._store.add_rows(self._run_id, episodes, metrics)
            except StoreUnavailable as error:
                _log.warning("%s; trying again in %g s", error, wait_s)
                time.sleep(wait_s)
        self._store.add_rows(self._run_id, episodes, metrics)
