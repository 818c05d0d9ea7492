"""Where metrics go beside the run store and MLflow: TensorBoard's event files, and Weights & Biases."""

import importlib.util
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from mario_dist.config import TrackingConfig
from mario_dist.errors import UserError

_FLUSH_S = 10.0

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes scalars; its failures are its own."""

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None: ...


class TensorBoardSink:
    """An event file in ``directory``. Where its disk takes no more, it ends, with one warning.

    resumed_at: agent steps that a resumed run begins with; what was written of later ones is hidden.
    """

    def __init__(self, directory: Path, resumed_at: int | None) -> None:
        """Raises ``UserError`` where there can be no such file."""
        # Half a second to import, and only a training needs it. Not its SummaryWriter, whose thread dies of a
        # full disk, and whose queue then holds up the training.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self._flush_at = 0.0
        # A run may be resumed within a second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{resumed_at or 0}-{os.getpid()}"
        try:
            directory.mkdir(exist_ok=True)
            self._writer: Any = RecordWriter(str(directory / name))
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard's event file in {directory} ({error.strerror});"
                " tracking.tensorboard=false goes without"
            ) from error
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed_at is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed_at + 1, session_log=start))

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None:
        summary = self._summary(
            value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._write(self._event(wall_time=time.time(), step=agent_steps, summary=summary))
        if time.monotonic() >= self._flush_at:
            self._try(lambda writer: writer.flush())
            self._flush_at = time.monotonic() + _FLUSH_S

    def close(self) -> None:
        self._try(lambda writer: writer.close())
        self._writer = None

    def _write(self, event: Any) -> None:
        self._try(lambda writer: writer.write(event.SerializeToString()))

    def _try(self, act: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            act(self._writer)
        except OSError as error:
            _log.warning("TensorBoard's event file ends here: %s", error.strerror)
            with suppress(OSError):  # of what it still holds
                self._writer.close()
            self._writer = None


class WandbSink:
    """A run of Weights & Biases under the id of ours, so that a resumed one goes on there.

    Its own settings (WANDB_MODE=offline, WANDB_API_KEY, ...) are those of its documentation.
    """

    def __init__(
        self, project: str, run_id: str, name: str, config: Mapping[str, Any], directory: Path
    ) -> None:
        """Raises ``UserError`` where wandb cannot start a run, as when nobody is logged in."""
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = wandb.init(
                project=project, id=run_id, name=name, config=dict(config), dir=directory, resume="allow"
            )
        except Exception as error:  # wandb's errors have no common base that is public
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"wandb cannot start a run ({reason}); log in with: wandb login") from error

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=agent_steps)

    def close(self) -> None:
        self._run.finish()


def check_tracking(config: TrackingConfig) -> None:
    """Raises ``UserError`` where what is asked for is not installed."""
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("tracking.wandb_project needs the wandb package: uv sync --extra wandb")


@contextmanager
def open_sinks(
    config: TrackingConfig,
    directory: Path,
    *,
    run_id: str,
    name: str,
    tree: Mapping[str, Any],
    resumed_at: int | None,
) -> Iterator[Sequence[Sink]]:
    """The sinks that ``config`` asks for, closed at the end. Raises ``UserError`` where one cannot be had."""
    sinks: list[Sink] = []
    with ExitStack() as stack:
        if config.tensorboard:
            tensorboard = TensorBoardSink(directory / "tensorboard", resumed_at)
            stack.callback(tensorboard.close)
            sinks.append(tensorboard)
        if config.wandb_project is not None:
            wandb = WandbSink(config.wandb_project, run_id, name, tree, directory)
            stack.callback(wandb.close)
            sinks.append(wandb)
        yield sinks
