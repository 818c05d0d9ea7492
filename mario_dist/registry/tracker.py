"""A training run in MLflow: parameters, batched metrics and artifacts. It never stops the training."""

import logging
import math
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mario_dist.errors import UserError
from mario_dist.registry.connection import explain, open_client, redact, resolve_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
PARAM_LENGTH = 6000

RunEnd = Literal["finished", "stopped", "failed"]
_MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Value:
    name: str
    value: float
    timestamp_ms: int
    agent_steps: int


class Tracker:
    """One tracked run. Opening and ``start`` raise ``UserError``; from then on failures are warnings.

    ``metrics`` returns at once: a thread sends what has gathered every ``linger_s`` seconds. What cannot
    be sent, or does not fit into the queue (``capacity`` calls), is counted in ``dropped``, which ``finish``
    reports.
    """

    def __init__(
        self, uri: str, experiment: str = "mario-dist", *, capacity: int = 1000, linger_s: float = 1.0
    ) -> None:
        """Connect and make the experiment. Raises ``UserError`` within a few seconds where MLflow is away."""
        self.uri = resolve_uri(uri)
        self._client, self._experiment_id = open_client(self.uri, experiment)
        self._linger_s = linger_s
        self._queue: queue.Queue[list[_Value] | None] = queue.Queue(capacity)
        self._hurry = threading.Event()
        self._run_id: str | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._dropped = 0
        self._skipped = 0
        self._warned = False

    @property
    def dropped(self) -> int:
        """Metric values that MLflow did not get."""
        return self._dropped

    @property
    def skipped(self) -> int:
        """Metric values that were NaN or infinite, which MLflow's charts cannot show."""
        return self._skipped

    def start(
        self,
        run_name: str,
        params: Mapping[str, str | int | float | bool],
        config_yaml: str,
        tags: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> str:
        """Begin a run, or continue ``resume_id``, and return its MLflow id.

        Where ``resume_id`` is no longer there, a new run begins: the id differs, and a warning is logged.
        Raises ``UserError`` where MLflow fails.
        """
        try:
            run = self._resumable(resume_id)
            if run is None:
                run = self._client.create_run(self._experiment_id, run_name=run_name)
            run_id = str(run.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._log_params(run_id, params, run.data.params)
            for name, value in (tags or {}).items():
                self._client.set_tag(run_id, name, value)
            self._client.log_text(run_id, config_yaml, "config.yaml")
        except Exception as error:  # MLflow and its artifact stores each raise their own
            raise UserError(f"cannot start a run in MLflow at {self._where}: {self._why(error)}") from error
        self._run_id = run_id
        self._thread = threading.Thread(
            target=self._send_forever, args=(run_id,), name="tracker", daemon=True
        )
        self._thread.start()
        return run_id

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None:
        """Queue metrics at a step. Values that are not finite are skipped and counted."""
        self._started()
        now_ms = time.time_ns() // 1_000_000
        finite = [
            _Value(_key(name), float(value), now_ms, int(agent_steps))
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._skipped += len(values) - len(finite)
        if finite:
            try:
                self._queue.put_nowait(finite)
            except queue.Full:
                self._drop(len(finite), "MLflow is too slow")

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run now, if MLflow takes it."""
        run_id = self._started()
        try:
            self._client.set_tag(run_id, name, value)
        except Exception as error:  # stores each raise their own
            _log.warning("MLflow did not take the tag %s: %s", name, self._why(error))

    def artifacts(self, directory: Path, artifact_path: str, names: Sequence[str] = ()) -> bool:
        """Upload a directory, or these files of it, now: it may be pruned later. False where that failed."""
        run_id = self._started()
        try:
            if not directory.is_dir():  # MLflow would upload nothing and be content
                raise NotADirectoryError(f"there is no directory {directory}")
            for name in names:
                self._client.log_artifact(run_id, str(directory / name), artifact_path)
            if not names:
                self._client.log_artifacts(run_id, str(directory), artifact_path)
        except Exception as error:  # artifact stores are plug-ins, and each raises its own
            _log.warning("MLflow did not take %s: %s", directory, self._why(error))
            return False
        return True

    def flush(self) -> None:
        """Wait until every queued value is sent or dropped."""
        self._hurry.set()
        self._queue.join()
        self._hurry.clear()

    def finish(self, status: RunEnd) -> None:
        """Flush, end the run with ``status`` and report what was dropped. Does nothing when done already."""
        if self._thread is None:
            return
        run_id = self._started()
        self._hurry.set()
        self._queue.put(None)
        self._thread.join()
        self._thread = self._run_id = None
        try:
            self._client.set_terminated(run_id, _MLFLOW_STATUS[status])
        except Exception as error:  # as above: the training is over and its result must stand
            _log.warning("MLflow did not take the end of run %s: %s", run_id, self._why(error))
        if self._dropped:
            _log.warning("MLflow missed %d metric values; the run store has them all", self._dropped)

    @property
    def _where(self) -> str:
        return redact(self.uri)

    def _why(self, error: BaseException) -> str:
        return explain(error, self.uri)

    def _started(self) -> str:
        if self._run_id is None:
            raise RuntimeError("the tracker has no run: call start first")
        return self._run_id

    def _resumable(self, run_id: str | None) -> "Run | None":
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
        _log.warning("MLflow at %s has no run %s any more; a new one begins", self._where, run_id)
        return None

    def _log_params(
        self, run_id: str, params: Mapping[str, str | int | float | bool], logged: Mapping[str, str]
    ) -> None:
        """Parameters cannot be changed in MLflow: a resumed run keeps its first values and warns."""
        from mlflow.entities import Param

        wanted = {_key(name): str(value)[:PARAM_LENGTH] for name, value in params.items()}
        changed = sorted(name for name in wanted.keys() & logged.keys() if wanted[name] != logged[name])
        if changed:
            _log.warning("MLflow keeps the first values of %s; config.yaml has the new", ", ".join(changed))
        new = [Param(name, value) for name, value in wanted.items() if name not in logged]
        for start in range(0, len(new), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=new[start : start + PARAMS_PER_BATCH])

    def _send_forever(self, run_id: str) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            self._hurry.wait(self._linger_s)
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            self._send(run_id, [value for values in batch if values is not None for value in values])
            for _ in batch:
                self._queue.task_done()

    def _send(self, run_id: str, values: Sequence[_Value]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(values), METRICS_PER_BATCH):
            chunk = values[start : start + METRICS_PER_BATCH]
            metrics = [Metric(v.name, v.value, v.timestamp_ms, v.agent_steps) for v in chunk]
            try:
                self._client.log_batch(run_id, metrics=metrics)
            except Exception as error:  # whatever it is, the training goes on and the loss is counted
                # The rest would wait for the same timeouts; the next round tries again.
                self._drop(len(values) - start, self._why(error))
                return

    def _drop(self, count: int, reason: str) -> None:
        with self._lock:
            self._dropped += count
            warn, self._warned = not self._warned, True
        if warn:
            _log.warning("MLflow at %s misses metrics; the training goes on: %s", self._where, reason)


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)
