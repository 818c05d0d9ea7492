"""Everything that a report says of one run, read from the run store and the run's directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mario_dist.report.curves import wall_clock
from mario_dist.report.judged import Judgement, best, judgements
from mario_dist.store import MetricRow, RunRow, RunStore
from mario_dist.types import F64, Bool


@dataclass(frozen=True, slots=True)
class EpisodeColumns:
    """A run's finished episodes of all lanes, oldest first, [E] each. ``wall_s``: seconds since it began."""

    agent_steps: F64
    wall_s: F64
    x_pos: F64
    cleared: Bool
    end: NDArray[np.str_]
    level: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.agent_steps)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric, [n] each; a value that was not finite is NaN."""

    agent_steps: F64
    wall_s: F64
    value: F64

    @property
    def constant(self) -> float | None:
        """The one finite value that it always had; None where there is no such."""
        first = float(self.value[0]) if len(self.value) else float("nan")
        return first if np.isfinite(first) and bool((self.value == first).all()) else None


@dataclass(frozen=True, slots=True)
class RunData:
    """One run of a report."""

    row: RunRow
    directory: Path
    episodes: EpisodeColumns
    metrics: dict[str, Series]
    judgements: list[Judgement]

    @property
    def wall_s(self) -> float | None:
        """Seconds of training; None before the first metrics."""
        return max((float(s.wall_s[-1]) for s in self.metrics.values() if len(s.wall_s)), default=None)

    @property
    def levels(self) -> list[str]:
        return self.row.level.split(",")

    @property
    def best(self) -> Judgement | None:
        return best(self.judgements, self.levels)


_COLUMNS = ("agent_steps", "x_pos_max", "flag_get", "end", "level")


def read_run(store: RunStore, row: RunRow, directory: Path) -> RunData:
    """Raises ``StoreUnavailable`` where the store cannot be read."""
    metrics = store.metrics(row.id)
    return RunData(
        row=row,
        directory=directory,
        episodes=episode_columns(store.episode_columns(row.id, _COLUMNS), metrics),
        metrics=series(metrics),
        judgements=judgements(store.evaluations(row.id), store.checkpoints(row.id)),
    )


def episode_columns(
    episodes: Sequence[tuple[float, float, bool, str, str]], metrics: Sequence[MetricRow]
) -> EpisodeColumns:
    """Rows of ``_COLUMNS`` as columns, with the wall-clock time that the metrics know."""
    agent_steps, x_pos, cleared, end, level = zip(*episodes, strict=True) if episodes else ((),) * 5
    steps = np.array(agent_steps, dtype=np.float64)
    return EpisodeColumns(
        agent_steps=steps,
        wall_s=wall_clock(steps, [m["agent_steps"] for m in metrics], [m["wall_s"] for m in metrics]),
        x_pos=np.array(x_pos, dtype=np.float64),
        cleared=np.array(cleared, dtype=np.bool_),
        end=np.array(end, dtype=np.str_),
        level=np.array(level, dtype=np.str_),
    )


def series(metrics: Sequence[MetricRow]) -> dict[str, Series]:
    """Rows, ordered by agent steps, as one series of each name, by name."""
    by_name: dict[str, list[MetricRow]] = {}
    for row in metrics:
        by_name.setdefault(row["name"], []).append(row)
    return {
        name: Series(
            # A database keeps what is not finite as NULL, which becomes NaN here.
            *(
                np.array([row[key] for row in by_name[name]], dtype=np.float64)
                for key in ("agent_steps", "wall_s", "value")
            )
        )
        for name in sorted(by_name)
    }


def find_clip(directory: Path) -> Path | None:
    """The newest video of the best checkpoint, or the newest of all; None without any."""
    # One that is being written has a dot in front.
    clips = sorted(
        (directory / "videos").glob("[!.]*.mp4"), key=lambda path: (path.stat().st_mtime, path.name)
    )
    named = [path for path in clips if "best" in path.name]
    return next(reversed(named or clips), None)
