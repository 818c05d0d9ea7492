"""How long an evaluation takes: many lanes on all cores, beside one lane after the other."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch

from mario_dist import machine
from mario_dist.env import EnvConfig
from mario_dist.evaluation import EvalProtocol, evaluate
from mario_dist.evaluation.protocol import MAX_LANES
from mario_dist.nets import Network


def bench_evaluate(
    network: Network,
    env: EnvConfig,
    protocol: EvalProtocol,
    rounds: int,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds of ``protocol`` as it is played, and per episode in a single lane on one core.

    The two take turns within each round; medians over the rounds, ratios within them. A single lane plays a
    tenth of the episodes.
    """
    torch.set_num_threads(1)
    few = dataclasses.replace(protocol, episodes=max(1, protocol.episodes // 10))
    seconds: list[float] = []
    alone: list[float] = []
    for number in range(rounds):
        announce(f"round {number + 1} of {rounds}")
        report = evaluate(network, env, protocol, machine.cores())
        seconds.append(report.seconds)
        alone.append(evaluate(network, env, few, 1, lanes=1).seconds * protocol.episodes / few.episodes)
    ratios = [one / many for one, many in zip(alone, seconds, strict=True)]
    count = protocol.episodes * len(protocol.levels)
    return {
        "machine": machine.describe(),
        "protocol": protocol.document(),
        "mario-dist": {
            "seconds": statistics.median(seconds),
            "episodes_per_s": count / statistics.median(seconds),
            "lanes": min(MAX_LANES, protocol.episodes),
            "cores": machine.cores(),
        },
        "one lane": {"seconds": statistics.median(alone), "episodes_per_s": count / statistics.median(alone)},
        "ratio": {"one lane": statistics.median(ratios)},
        "ratios": ratios,
    }
