"""What the topology asks of a driver. ``W`` is a handle on weights, ``U`` a handle on an unroll.

The local driver passes the things themselves; the Ray driver passes references, so that the data goes
from actor to learner without visiting the process that conducts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mario_dist.evaluation import EvalProtocol
from mario_dist.types import Arrays, EpisodeRecord, EvalReport, StepReport

Order = tuple[Any, ...]
"""What the learner learns from next: handles on unrolls, or a number of updates from its replay."""


@dataclass(frozen=True, slots=True)
class Collected[U]:
    """One unroll by handle, and what the conductor must know of it."""

    unroll: U
    actor: int
    steps: int
    weights_version: int
    episodes: tuple[EpisodeRecord, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Rollouts[W, U](Protocol):
    """The rollout workers of a run."""

    @property
    def n_actors(self) -> int:
        """How many workers there are now."""

    @property
    def restarts(self) -> int:
        """How many workers died."""

    @property
    def under_way(self) -> int:
        """How many unrolls are asked for and not gathered."""

    def submit(self, weights: W, progress: float) -> None:
        """Ask every idle worker for one unroll with these weights.

        ``progress`` is the done part of the run, 0 to 1.
        """

    def gather(self, least: int, unless: Any = None) -> list[Collected[U]]:
        """All that is there, once it is ``least`` unrolls, or all of those under way where they are fewer.

        Nothing, or what is there, as soon as ``unless`` is: the driver's handle on something else awaited.
        Nothing after a moment, where no worker is there.
        """

    def state(self) -> list[Arrays]:
        """What each worker's future depends on; empty for one that has just been replaced.

        Nothing may be asked for meanwhile.
        """

    def evaluate(self, weights: W, protocol: EvalProtocol) -> EvalReport: ...

    def close(self) -> None: ...


class Closes(Protocol):
    """What holds something to be given back."""

    def close(self) -> None: ...


class LearnerPort[W](Protocol):
    """The learner of a run."""

    @property
    def concurrent(self) -> bool:
        """Whether it learns while rollouts are made, so that one of them may have to wait for the other."""

    @property
    def in_flight(self) -> int:
        """How many orders were submitted and not polled."""

    @property
    def free(self) -> bool:
        """Whether it takes another order."""

    @property
    def next_report(self) -> Any:
        """A handle on the report of the oldest order; None where nothing can be awaited."""

    def submit(self, order: Order, progress: float) -> None:
        """``progress`` is the done part of the run, 0 to 1."""

    def poll(self, *, block: bool) -> StepReport | None:
        """The report of the oldest order; None where it is not there yet, or nothing was ordered."""

    def weights(self) -> W:
        """Those of the newest report."""

    def state(self) -> Arrays: ...

    def recover(self, state: Arrays, lr_factor: float) -> None:
        """Go back to the weights of ``state`` and learn more slowly. Nothing may be in flight."""


class ReplayPort[U](Protocol):
    """The replay of a run: this process fills it, its learner draws from it."""

    @property
    def lost(self) -> int:
        """Agent steps that were added and never arrived."""

    def add(self, collected: Sequence[Collected[U]]) -> None: ...

    def save_replay(self, directory: Path) -> None:
        """Write all shards. Nothing may be under way meanwhile."""

    def load_replay(self, directory: Path) -> None:
        """Go on with what ``save_replay`` wrote. Raises ``ValueError`` where it does not fit."""
