"""Where metrics go beside the run store and MLflow: TensorBoard's event files, and Weights & Biases."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mario_dist.config import TrackingConfig
from mario_dist.errors import UserError


class Sink(Protocol):
    """Takes scalars; its failures are its own."""

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None: ...


class TensorBoardSink:
    """Event files in ``directory``, written by a thread of tensorboardX's.

    resumed_at: agent steps that a resumed run begins with; what was written of later ones is hidden.
    """

    def __init__(self, directory: Path, resumed_at: int | None) -> None:
        # Half a second to import, and only a training needs it.
        from tensorboardX import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        # Its file names have seconds, and a run may be resumed within one.
        suffix = f".{resumed_at or 0}-{os.getpid()}"
        self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=10, filename_suffix=suffix)

    def metrics(self, agent_steps: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, agent_steps)

    def close(self) -> None:
        self._writer.close()


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
