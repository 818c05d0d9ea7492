"""What the topology asks of a driver. ``W`` is a handle on weights, ``U`` a handle on an unroll.

The local driver passes the things themselves; the Ray driver passes references, so that the data goes
from actor to learner without visiting the process that conducts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mario_dist.types import Arrays, EpisodeRecord, EvalReport, StepReport


@dataclass(frozen=True, slots=True)
class Collected[U]:
    """One unroll by handle, and what the conductor must know of it."""

    unroll: U
    steps: int
    episodes: tuple[EpisodeRecord, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Rollouts[W, U](Protocol):
    """The rollout workers of a run."""

    @property
    def n_actors(self) -> int: ...

    @property
    def restarts(self) -> int:
        """How many workers died and were replaced."""

    def submit(self, weights: W) -> None:
        """Ask every worker for one unroll with these weights."""

    def gather(self) -> list[Collected[U]]:
        """Wait for what was asked for, one unroll of each worker."""

    def state(self) -> list[Arrays]:
        """What each worker's future depends on; empty for one that has just been replaced.

        Nothing may be asked for meanwhile.
        """

    def evaluate(self, weights: W) -> EvalReport:
        """Judge these weights by the run's training protocol."""

    def close(self) -> None: ...


class LearnerPort[W, U](Protocol):
    """The learner of a run."""

    def step(self, unrolls: Sequence[U], progress: float) -> StepReport: ...

    def weights(self) -> W: ...

    def state(self) -> Arrays: ...
