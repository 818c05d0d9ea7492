"""How long until Mario takes the flag: whole trainings over several seeds, judged on the way."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mario_dist import machine
from mario_dist.config import EvaluationConfig, RunConfig
from mario_dist.errors import UserError
from mario_dist.evaluation import SETTINGS
from mario_dist.store import EpisodeRow, MetricRow, RunStore
from mario_dist.system.run import run_training

MARKS = (0.5, 0.95, 0.99)
"""Clear rates whose first evaluation is timed."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where the trainings are kept: as any other run, so that all other commands show them too."""

    runs: Path
    store_url: str
    tracking_uri: str


def bench_flag(
    configs: Mapping[str, RunConfig],
    seeds: Sequence[int],
    every_steps: int,
    episodes: int,
    where: Where,
    announce: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Train each of ``configs`` with each of ``seeds``, seed by seed; the document after each training.

    Every ``every_steps`` agent steps training pauses for ``episodes`` episodes of the protocol of the
    configuration's ``stop``, on lanes and seeds aside; seconds of training leave that time out, and it is
    given beside. A run ends by its own ``stop`` or ``total_steps``. A mark that a run did not reach counts as
    infinity in the medians, and is null. Raises ``UserError`` where a protocol cannot be the evaluations'.
    """
    for config in configs.values():
        judged_by(config.stop.protocol, every_steps, episodes)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    for seed in seeds:
        for name, config in configs.items():
            announce(f"{name}, seed {seed}")
            rows[name].append(_train(config, seed, every_steps, episodes, where))
            yield {
                "machine": machine.describe(),
                "every_steps": every_steps,
                "episodes": episodes,
                "configs": {name: _summary(runs) for name, runs in rows.items() if runs},
            }


def judged_by(protocol: str, every_steps: int, episodes: int) -> EvaluationConfig:
    """Evaluations during training by a named protocol. Raises ``UserError`` where they cannot be by it."""
    settings = SETTINGS[protocol]
    if "sticky" in settings:
        raise UserError(f"evaluations during training cannot be by stop.protocol={protocol}; take another")
    return EvaluationConfig(every_steps=every_steps, episodes=episodes, clip=False, **settings)


def _train(config: RunConfig, seed: int, every_steps: int, episodes: int, where: Where) -> dict[str, Any]:
    evaluation = judged_by(config.stop.protocol, every_steps, episodes)
    config = dataclasses.replace(config, name=f"{config.name}-flag", seed=seed, evaluation=evaluation)
    result = run_training(config, where.runs, store_url=where.store_url, tracking_uri=where.tracking_uri)
    collapsed = config.collapse.on_collapse == "stop" and result.alarm is not None
    if result.outcome == "stopped" and not collapsed:
        raise KeyboardInterrupt
    with RunStore(where.store_url) as store:
        metrics, told = store.metrics(result.run_id), store.episodes(result.run_id)
    found = read_run(metrics, told, config.stop.clear_rate)
    return {"seed": seed, "run": result.run_id, "protocol": config.stop.protocol, **found}


def read_run(
    metrics: Sequence[MetricRow], episodes: Sequence[EpisodeRow], goal: float | None
) -> dict[str, Any]:
    """What a finished run's rows say of its way to the flag.

    marks: [agent steps, seconds of training] of the first flag in training, of the first evaluation at each
    of ``MARKS``, and of the run's own end where it was by ``goal``, its ``stop.clear_rate``; null for never.
    curve: [agent steps, seconds of training, clear rate, mean x] of each evaluation, the seconds without
    those of evaluations.
    """
    at: dict[int, dict[str, float]] = {}
    for row in metrics:
        values = at.setdefault(row["agent_steps"], {"wall_s": 0.0})
        values[row["name"]] = row["value"]
        # Evaluations are told after the training's own metrics of that step: when they were done.
        values["wall_s"] = max(values["wall_s"], row["wall_s"])
    judged_s = 0.0
    seconds: dict[int, float] = {}
    curve: list[tuple[int, float, float, float]] = []
    for steps, values in sorted(at.items()):
        judged_s += values.get("eval/seconds", 0.0) + values.get("stop/seconds", 0.0)
        seconds[steps] = values["wall_s"] - judged_s
        if "eval/clear_rate" in values:
            curve.append((steps, seconds[steps], values["eval/clear_rate"], values["eval/x_pos_mean"]))
    last = max(seconds)
    flag = next((episode["agent_steps"] for episode in episodes if episode["flag_get"]), None)
    marks: dict[str, tuple[int, float] | None] = {
        "first flag": None if flag is None else (flag, seconds[min(s for s in seconds if s >= flag)])
    }
    for mark in MARKS:
        marks[f"{mark:.0%}"] = next(((steps, s) for steps, s, rate, _ in curve if rate >= mark), None)
    ends = (
        steps for steps, values in sorted(at.items()) if goal and values.get("stop/clear_rate", 0.0) >= goal
    )
    end = next(ends, None)
    marks["end by stop"] = None if end is None else (end, seconds[end])
    return {
        "agent_steps": last,
        "train_s": seconds[last],
        "evaluation_s": judged_s,
        "agent_steps_per_s": last / seconds[last],
        "marks": marks,
        "best": max((rate for _, _, rate, _ in curve), default=None),
        "curve": curve,
    }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and range over the seeds of the steps and minutes to each mark."""
    marks: dict[str, Any] = {}
    for mark in runs[0]["marks"]:
        reached = [run["marks"][mark] or (math.inf, math.inf) for run in runs]
        steps, minutes = zip(*((s, seconds / 60) for s, seconds in reached), strict=True)
        marks[mark] = {
            "reached": sum(run["marks"][mark] is not None for run in runs),
            "agent_steps": _spread(steps),
            "minutes": _spread(minutes),
        }
    return {
        "marks": marks,
        "agent_steps_per_s": statistics.median(run["agent_steps_per_s"] for run in runs),
        "runs": list(runs),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, least and most; null for what was not reached."""
    of = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: value if math.isfinite(value) else None for name, value in of.items()}
