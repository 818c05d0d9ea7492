"""How fast the learner consumes experience: its step on one real unroll, again and again."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.system.build import make_learner, make_worker


def bench_learner(config: RunConfig, threads: Sequence[int], steps: int) -> dict[str, Any]:
    """Samples per second (every epoch counts) and agent steps per second; medians after a warm-up."""
    worker = make_worker(config, lanes=config.rollout.lanes or 16, threads=machine.cores())
    try:
        unroll = worker.collect(make_learner(config, 0).weights()).unroll
    finally:
        worker.close()
    rows: list[dict[str, Any]] = []
    for count in threads:
        learner = make_learner(config, count)
        rates = []
        for step in range(steps + 1):
            at = time.perf_counter()
            learner.step([dataclasses.replace(unroll, weights_version=learner.version)], progress=0.0)
            if step:
                rates.append(unroll.steps / (time.perf_counter() - at))
        rate = statistics.median(rates)
        rows.append(
            {
                "threads": count,
                "device": str(learner.device),
                "agent_steps_per_s": rate,
                "samples_per_s": rate * config.algo.epochs,
            }
        )
    best = max(rows, key=lambda row: row["agent_steps_per_s"])
    return {"machine": machine.describe(), "mario-dist": best, "rows": rows}
