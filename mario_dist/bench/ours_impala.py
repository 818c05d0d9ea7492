"""IMPALA on the peers' workload, with all that a run does, and where its cores' time goes.

Run as ``python -m mario_dist.bench.ours_impala '<ImpalaSettings as JSON>'``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from statistics import median
from typing import Literal

from mario_dist import machine
from mario_dist.algos.impala import ImpalaConfig
from mario_dist.bench.ours import trained
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.settings import (
    ImpalaSettings,
    Mark,
    PeerResult,
    env_config,
    measured,
    network_config,
    summarise,
    windows,
)
from mario_dist.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearnerConfig,
    RolloutConfig,
    RunConfig,
    SystemConfig,
)
from mario_dist.store import RunStore

_DRIVER: Literal["local", "ray"] = "ray"

_WORKERS = {
    "emulation": "worker_environment_cpu_s",
    "inference": "worker_inference_cpu_s",
    "serialisation": "worker_other_cpu_s",
}
"""The parts of the rollout actors' time, and the metrics that hold it; serialisation is all that is left."""
_PROGRESS = ("learner_s", "dropped_steps")
_CORES = (*_WORKERS.values(), "learn_cpu_s", "cores_busy")


@dataclass(frozen=True, slots=True)
class Row:
    """Metrics that the run store has of a learner step."""

    agent_steps: int
    wall_s: float
    values: Mapping[str, float]


def run_config(settings: ImpalaSettings) -> RunConfig:
    """The workload as a run's configuration, without an end: it is stopped when enough was measured."""
    actors = _actors(settings)
    return RunConfig(
        name="bench",
        seed=settings.seed,
        total_steps=10**9,
        env=env_config(settings),
        network=network_config(settings),
        algo=ImpalaConfig(
            gamma=settings.gamma,
            value_coef=settings.value_coef,
            entropy_coef=(settings.entropy_coef, settings.entropy_coef),
            optimiser="adam",
            optimiser_eps=1e-5,
            lr=(settings.lr, settings.lr),
            max_grad_norm=settings.max_grad_norm,
            batch_unrolls=actors,
        ),
        rollout=RolloutConfig(actors=actors, lanes=settings.n_envs // actors, unroll_length=settings.n_steps),
        system=SystemConfig(driver=_DRIVER),
        learner=LearnerConfig(device=settings.device, threads=settings.torch_threads, precision="float32"),
        checkpoint=CheckpointConfig(every_steps=10**9),
        evaluation=EvaluationConfig(every_steps=0),
    )


def _actors(settings: ImpalaSettings) -> int:
    """One, whose lanes are looked at together; where emulation takes nearly all the time, one a core."""
    cores = machine.cores()
    return cores if settings.emulator == "nes-py" and settings.n_envs % cores == 0 else 1


def measure(settings: ImpalaSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up are not in the figures; what is not learning is rollout."""

    def enough(store: RunStore) -> bool:
        return any(
            len(windows(marks(read_rows(store, run.id, _PROGRESS)), settings)) == settings.iterations
            for run in store.list_runs()
        )

    with trained(run_config(settings), enough) as (store, run):
        rows = read_rows(store, run.id, (*_PROGRESS, *_CORES, "policy_lag_mean"))
    pairs = windows(marks(rows), settings)
    begin_s, end_s = pairs[0][0].at_s, pairs[-1][1].at_s
    within = [row for row in rows if begin_s <= row.wall_s <= end_s]
    lags = [row.values["policy_lag_mean"] for row in within if "policy_lag_mean" in row.values]
    detail = {"plan": run.machine["plan"], "policy_lag_mean": median(lags)}
    parts = core_seconds(within, settings.turn // _actors(settings), machine.cores())
    return summarise(measured(pairs), detail if parts is None else {**detail, "core_seconds": parts})


def read_rows(store: RunStore, run_id: str, names: Sequence[str]) -> list[Row]:
    """What the store has of ``names``, by agent steps.

    Two learner steps between which no unroll came in share a row, which has the later one's values.
    """
    rows: list[Row] = []
    for agent_steps, found in groupby(store.metrics(run_id, names), key=itemgetter("agent_steps")):
        metrics = list(found)
        wall_s = max(metric["wall_s"] for metric in metrics)
        rows.append(Row(agent_steps, wall_s, {metric["name"]: metric["value"] for metric in metrics}))
    return rows


def marks(rows: Sequence[Row]) -> list[Mark]:
    """The ends of the learner steps. Agent steps that were dropped do not count."""
    learn_s = 0.0
    found = [Mark(row.wall_s, row.agent_steps, learn_s) for row in rows[:1]]
    for row in rows[1:]:
        learn_s += row.values["learner_s"]
        kept = row.agent_steps - int(row.values.get("dropped_steps", 0.0))
        found.append(Mark(row.wall_s, kept, learn_s))
    return found


def core_seconds(rows: Sequence[Row], unroll: int, cores: int) -> dict[str, float] | None:
    """Where each core's time went, per 1,000 agent steps, from the first row's learner step to the last's.

    unroll: agent steps of one, of which the workers' metrics are means. None where the store lacks one
    of the metrics.
    """
    if not all(any(name in row.values for row in rows) for name in _CORES):
        return None
    spent = dict.fromkeys([*_WORKERS, "learning"], 0.0)
    busy = 0.0
    for before, row in pairwise(rows):
        unrolls = (row.agent_steps - before.agent_steps) / unroll
        for part, name in _WORKERS.items():
            spent[part] += unrolls * row.values.get(name, 0.0)
        spent["learning"] += row.values.get("learn_cpu_s", 0.0)
        busy += row.values.get("cores_busy", 0.0) * (row.wall_s - before.wall_s)
    total = cores * (rows[-1].wall_s - rows[0].wall_s)
    parts = {**spent, "other_processes": busy - sum(spent.values()), "idle": total - busy}
    thousands = (rows[-1].agent_steps - rows[0].agent_steps) / 1000
    return {part: seconds / thousands for part, seconds in parts.items()}


if __name__ == "__main__":
    child_main(measure, ImpalaSettings)
