"""How fast experience is made: environment and policy, without learning."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.nets import get_weights
from mario_dist.system.build import make_network, make_worker


def bench_rollout(
    config: RunConfig, lanes: Sequence[int], threads: Sequence[int], unrolls: int
) -> dict[str, Any]:
    """Agent steps per second for every pair of lanes and threads; the median of ``unrolls`` after a warm-up.

    ``seconds`` are the medians of one unroll's parts.
    """
    rows = [_measure(config, n, t, unrolls) for t in threads for n in lanes]
    best = max(rows, key=lambda row: row["agent_steps_per_s"])
    return {"machine": machine.describe(), "mario-dist": best, "rows": rows}


def _measure(config: RunConfig, lanes: int, threads: int, unrolls: int) -> dict[str, Any]:
    torch.set_num_threads(1)  # as the plan has it: the emulators take the cores
    worker = make_worker(config, lanes=lanes, threads=threads)
    weights = get_weights(make_network(config), version=0)
    rates: list[float] = []
    parts: dict[str, list[float]] = {}
    try:
        for unroll in range(unrolls + 1):
            at = time.perf_counter()
            result = worker.collect(weights)
            if unroll == 0:
                continue
            rates.append(result.unroll.steps / (time.perf_counter() - at))
            for name, seconds in result.seconds.items():
                parts.setdefault(name, []).append(seconds)
    finally:
        worker.close()
    rate = statistics.median(rates)
    return {
        "lanes": lanes,
        "threads": threads,
        "agent_steps_per_s": rate,
        "frames_per_s": rate * config.env.frame_skip,
        "seconds": {name: statistics.median(values) for name, values in parts.items()},
    }
