"""How rollouts grow with their actors, beside what the emulators alone would do on the same cores."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from mario_dist import machine
from mario_dist.bench.emulator import processes_rate
from mario_dist.config import RunConfig
from mario_dist.nets import get_weights
from mario_dist.system.build import make_network
from mario_dist.system.plan import make_plan

_WARMUP_UNROLLS = 2


def bench_scaling(
    config: RunConfig, actors: Sequence[int], rounds: int, seconds: float, announce: Callable[[str], None]
) -> dict[str, Any]:
    """For each count of rollout actors on Ray, agent steps/s with nobody learning, beside as many processes
    with as many emulators each and no policy; medians of ``rounds``, which alternate between the two.

    of_first: how many times the rate of the first count. of_ceiling: of the emulators' alone.
    """
    from mario_dist.system.ray import put
    from mario_dist.system.ray_cluster import connected

    # As many lanes in every row, or inference in larger batches would be measured along.
    most = dataclasses.replace(config.rollout, actors=max(actors), threads=1)
    learner = dataclasses.replace(config.learner, device="cpu")
    system = dataclasses.replace(config.system, driver="ray")
    config = dataclasses.replace(config, rollout=most, learner=learner, system=system)
    lanes = make_plan(config, machine.cores(), gpu=False).lanes
    config = dataclasses.replace(config, rollout=dataclasses.replace(most, lanes=lanes))
    weights = get_weights(make_network(config), version=0)
    rows: list[dict[str, Any]] = []
    with connected(None, None, cores=max(machine.cores(), *actors) + 1):
        shared = put(weights)
        for count in actors:
            announce(f"{count} rollout actor(s)")
            rows.append(_row(config, count, rounds, seconds, shared))
    for row in rows:
        row["of_first"] = row["agent_steps_per_s"] / rows[0]["agent_steps_per_s"]
        row["of_ceiling"] = row["agent_steps_per_s"] / row["emulators_alone_per_s"]
    best = max(rows, key=lambda row: float(row["agent_steps_per_s"]))
    return {"machine": machine.describe(), "mario-dist": best, "rows": rows}


def _row(config: RunConfig, actors: int, rounds: int, seconds: float, weights: Any) -> dict[str, Any]:
    from mario_dist.system.ray_rollouts import ray_rollouts

    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, actors=actors))
    plan = make_plan(config, machine.cores(), gpu=False)
    rollouts = ray_rollouts(config, plan, [], 0, gpu=False)
    rates, ceilings = [], []
    try:
        for _ in range(_WARMUP_UNROLLS):
            rollouts.submit(weights, 0.0)
            rollouts.gather(actors)
        for _ in range(rounds):
            ceilings.append(processes_rate(config.env, plan.lanes, actors, seconds))
            steps, at = 0, time.perf_counter()
            while time.perf_counter() - at < seconds:
                rollouts.submit(weights, 0.0)
                steps += sum(item.steps for item in rollouts.gather(1))
            steps += sum(item.steps for item in rollouts.gather(actors))
            rates.append(steps / (time.perf_counter() - at))
    finally:
        rollouts.close()
    return {
        "actors": actors,
        "lanes": plan.lanes,
        "groups": config.rollout.groups,
        "inference": config.rollout.inference,
        "agent_steps_per_s": statistics.median(rates),
        "emulators_alone_per_s": statistics.median(ceilings),
    }
