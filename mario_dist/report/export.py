"""A run as files that any tool reads."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mario_dist.errors import UserError
from mario_dist.store import MetricRow, RunRow, RunStore


def export_run(store: RunStore, run: RunRow, directory: Path) -> list[Path]:
    """Write episodes.csv, metrics.csv and evaluations.json; returns their paths.

    An episode, or a learner's report, is a row; a metric that a report lacks is an empty cell. Raises
    ``UserError`` where the directory cannot be written.
    """
    episodes = store.episodes(run.id)
    metrics = wide(store.metrics(run.id))
    evaluations = [dataclasses.asdict(row) for row in store.evaluations(run.id)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = [
            _write_csv(directory / "episodes.csv", episodes),
            _write_csv(directory / "metrics.csv", metrics),
            directory / "evaluations.json",
        ]
        written[-1].write_text(json.dumps(evaluations, default=str, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error
    return written


def wide(rows: Iterable[MetricRow]) -> list[dict[str, float]]:
    """One row for each number of agent steps, its metrics by name."""
    by_steps: dict[int, dict[str, float]] = {}
    for row in rows:
        steps = row["agent_steps"]
        values = by_steps.setdefault(steps, {"agent_steps": steps, "wall_s": row["wall_s"]})
        values[row["name"]] = row["value"]
    return list(by_steps.values())


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path
