"""How fast the learner consumes experience: its step on real unrolls, again and again."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig
from mario_dist.algos.impala import ImpalaConfig
from mario_dist.algos.ppo import PPOConfig
from mario_dist.bench.bare import bare_step
from mario_dist.config import RunConfig
from mario_dist.nets import get_weights
from mario_dist.replay import ShardedReplay
from mario_dist.system.build import make_learner, make_network, make_replay_learner, make_shard, make_worker
from mario_dist.system.replay_trainer import ReplayTrainer
from mario_dist.types import Unroll

_LANES = 16
_UPDATES = 8
_REPLAYED_UNROLLS = 16


def bench_learner(config: RunConfig, threads: Sequence[int], steps: int) -> dict[str, Any]:
    """Samples per second (every epoch or batch counts); medians of ``steps`` steps after a warm-up.

    agent_steps_per_s is what the learner bears: at the algorithm's epochs, or at the run's replay ratio. A
    step of an algorithm with a replay is 8 updates, drawing the batches and writing priorities back
    included; ``updates_per_s`` counts them.
    A step of the others is an unroll's, making the batch of it included; ``bare_samples_per_s`` are those of
    a bare loop (``bench.bare``), whose steps alternate with the learner's, and ``share_of_bare`` is what the
    learner reaches of them.
    """
    replayed = isinstance(config.algo, ApexConfig)
    unrolls = _collect(config, _REPLAYED_UNROLLS if replayed else 1)
    rows: list[dict[str, Any]] = []
    for count in threads:
        step, samples, device = (_replayed if replayed else _on_policy)(config, count, unrolls)
        calls = [step] if replayed else [step, bare_step(config, unrolls[0], count)]
        rate, *bare = (samples / seconds for seconds in _alternately(calls, steps))
        row = {"threads": count, "device": device, "samples_per_s": rate}
        if isinstance(config.algo, ApexConfig):
            row["agent_steps_per_s"] = rate / config.replay.samples_per_insert
            row["updates_per_s"] = rate / config.algo.batch
        else:
            row["agent_steps_per_s"] = rate / _passes(config.algo)
            row |= {"bare_samples_per_s": bare[0], "share_of_bare": rate / bare[0]}
        rows.append(row)
    best = max(rows, key=lambda row: float(row["samples_per_s"]))
    return {"machine": machine.describe(), "mario-dist": best, "rows": rows}


def _alternately(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The median seconds of each call over ``rounds`` rounds of all of them, after one to warm up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, taken in zip(calls, seconds, strict=True):
            at = time.perf_counter()
            call()
            taken.append(time.perf_counter() - at)
    return [statistics.median(taken[1:]) for taken in seconds]


def _collect(config: RunConfig, count: int) -> list[Unroll]:
    worker = make_worker(config, lanes=config.rollout.lanes or _LANES, threads=machine.cores())
    weights = get_weights(make_network(config), version=0)
    try:
        return [worker.collect(weights).unroll for _ in range(count)]
    finally:
        worker.close()


def _on_policy(
    config: RunConfig, threads: int, unrolls: Sequence[Unroll]
) -> tuple[Callable[[], object], int, str]:
    """A step, the samples in it, and the device."""
    assert not isinstance(config.algo, ApexConfig)
    learner = make_learner(config, threads)
    (unroll,) = unrolls

    def step() -> None:
        learner.step([dataclasses.replace(unroll, weights_version=learner.version)], progress=0.0)

    return step, unroll.steps * _passes(config.algo), str(learner.device)


def _passes(algo: PPOConfig | ImpalaConfig) -> int:
    """How often it learns from a sample."""
    return algo.epochs if isinstance(algo, PPOConfig) else algo.reuse


def _replayed(
    config: RunConfig, threads: int, unrolls: Sequence[Unroll]
) -> tuple[Callable[[], object], int, str]:
    """A step of some updates, the samples in it, and the device."""
    assert isinstance(config.algo, ApexConfig)
    sized = dataclasses.replace(config.replay, capacity=sum(u.steps for u in unrolls), min_size=1)
    shard = make_shard(
        dataclasses.replace(config, replay=sized), lanes=unrolls[0].action.shape[1], shard=0, shards=1
    )
    for unroll in unrolls:
        shard.add(unroll)
    learner = make_replay_learner(config, threads)
    trainer = ReplayTrainer(learner, ShardedReplay([shard], config.seed), config.algo)
    return lambda: trainer.run(_UPDATES, 0.0), _UPDATES * config.algo.batch, str(learner.device)
