"""How fast a replay takes in and gives out transitions, and what memory one takes: on frames of real play."""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.nets import get_weights
from mario_dist.replay import planned_bytes
from mario_dist.system.build import make_network, make_shard, make_worker
from mario_dist.system.plan import Plan, check_replay, make_plan
from mario_dist.system.ports import Collected
from mario_dist.types import Transitions, Unroll

Compression = Literal["none", "lz4"]

_RATES = ("adds_per_s", "samples_per_s", "updates_per_s")
_LANES = 16
_MEMORY_SHARE = 0.5
_RECORDED = 64
"""Unrolls of real play, added again and again as those of as many actors."""


def bench_replay(
    config: RunConfig,
    compressions: Sequence[Compression],
    *,
    through_ray: bool,
    rounds: int,
    seconds: float,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Transitions per second into and out of a full shard; medians of ``rounds`` rounds of ``seconds`` each.

    samples_per_s: batches drawn and rebuilt; updates_per_s: drawn, and their priorities written back.
    bytes_per_transition: growth of the process's resident memory while the ring was filled and everything
    in it overwritten once, over its size; growth_when_full_mib: its further growth while everything was
    overwritten again. Each shard is in a process of its own.

    Raises ``UserError`` where the capacity does not fit the memory.
    """
    rows: list[dict[str, Any]] = []
    for compression in compressions:
        sized = dataclasses.replace(
            config, replay=dataclasses.replace(config.replay, compression=compression, shards=1)
        )
        check_replay(sized, _plan(sized), machine.available_gib() * 2**30)
        announce(f"one process, compression {compression}: {config.replay.capacity:,} transitions")
        # A fresh process: its resident memory is the ring's.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(_in_process, sized, rounds, seconds).result())
        announce(_figures(rows[-1]))
        if through_ray:
            announce(f"through Ray, compression {compression}")
            rows.append(_through_ray(sized, rounds, seconds))
            announce(_figures(rows[-1]))
    remains = {
        here["compression"]: {name: there[name] / here[name] for name in _RATES}
        for here in rows
        for there in rows
        if (here["where"], there["where"]) == ("one process", "Ray")
        and here["compression"] == there["compression"]
    }
    return {
        "machine": machine.describe(),
        "mario-dist": rows[0],
        "rows": rows,
        "remains_through_ray": remains,
    }


def resized(config: RunConfig, capacity: int | None, batch: int) -> RunConfig:
    """``config`` with this capacity (None for a million, or what the memory holds) and batch.

    Raises ``UserError`` where its algorithm has no replay.
    """
    if not isinstance(config.algo, ApexConfig):
        raise UserError(f"algo.name={config.algo.name} has no replay; give a configuration such as apex-1-1")
    if capacity is None:
        room = _MEMORY_SHARE * machine.available_gib() * 2**30
        capacity = min(1_000_000, int(room / planned_bytes("none", config.env.frame_size)))
    return dataclasses.replace(
        config,
        algo=dataclasses.replace(config.algo, batch=batch),
        replay=dataclasses.replace(config.replay, capacity=capacity, min_size=1),
    )


def _figures(row: dict[str, Any]) -> str:
    return "  " + ", ".join(f"{row[name]:,.0f} {name}" for name in _RATES)


def _plan(config: RunConfig) -> Plan:
    """One shard for actors of as many lanes as the run has."""
    plan = make_plan(config, machine.cores(), gpu=False, address="local")
    return dataclasses.replace(plan, actors=1, lanes=config.rollout.lanes or _LANES)


def _record(config: RunConfig) -> list[Unroll]:
    """What an untrained network plays from the level's start on, by its epsilons."""
    torch.set_num_threads(1)  # on a busy machine, more wait for each other at each of its small steps
    worker = make_worker(config, lanes=config.rollout.lanes or _LANES, threads=machine.cores())
    weights = get_weights(make_network(config), version=0)
    try:
        return [
            dataclasses.replace(worker.collect(weights).unroll, actor=i, sequence=0) for i in range(_RECORDED)
        ]
    finally:
        worker.close()


def _numbered(unrolls: Sequence[Unroll], index: int) -> Unroll:
    """The ``index``-th unroll to add: every recorded one goes on as an actor of its own."""
    turn, which = divmod(index, len(unrolls))
    return dataclasses.replace(unrolls[which], sequence=turn)


def _in_process(config: RunConfig, rounds: int, seconds: float) -> dict[str, Any]:
    assert isinstance(config.algo, ApexConfig)
    unrolls = _record(config)
    before = _resident_bytes()
    shard = make_shard(config, lanes=unrolls[0].action.shape[1], shard=0, shards=1)
    added = 0

    def add() -> int:
        nonlocal added
        shard.add(_numbered(unrolls, added))
        added += 1
        return unrolls[0].steps

    def go_round() -> None:
        for _ in range(shard.capacity // unrolls[0].steps):
            add()

    go_round()
    go_round()  # an arena of compressed frames is written to its end only now
    full = _resident_bytes()
    size = len(shard)
    go_round()
    overwritten = _resident_bytes()
    shard.check_valid()
    batch, rng = config.algo.batch, np.random.default_rng(0)
    errors = rng.random(batch).astype(np.float32)

    def sample() -> int:
        return len(shard.sample(batch).action_B)

    def update() -> int:
        shard.update(shard.sample(batch).id_B, errors)
        return batch

    return {
        "where": "one process",
        "compression": config.replay.compression,
        "capacity": shard.capacity,
        "batch": batch,
        "adds_per_s": _rate(add, rounds, seconds),
        "samples_per_s": _rate(sample, rounds, seconds),
        "updates_per_s": _rate(update, rounds, seconds),
        "bytes_per_transition": (full - before) / size,
        "growth_when_full_mib": (overwritten - full) / 2**20,
    }


def _through_ray(config: RunConfig, rounds: int, seconds: float) -> dict[str, Any]:
    """The same shard as an actor, filled and drawn from as a run does it: by reference, batches ahead."""
    from mario_dist.system.ray import put
    from mario_dist.system.ray_cluster import connected
    from mario_dist.system.ray_shards import RayReplay, RayShards

    assert isinstance(config.algo, ApexConfig)
    unrolls = _record(config)
    batch = config.algo.batch
    with connected(None, None, cores=machine.cores()):
        shards = RayShards(config, _plan(config))
        added = 0

        def add() -> int:
            nonlocal added
            unroll = _numbered(unrolls, added)
            shards.add([Collected(put(unroll), unroll.actor, unroll.steps, 0, ())])
            added += 1
            return unroll.steps

        try:
            for _ in range(config.replay.capacity // unrolls[0].steps):
                add()
            shards.settle(0)
            source = RayReplay(shards.handles, batch, config.replay.prefetch, config.seed)
            errors = np.random.default_rng(0).random(batch).astype(np.float32)

            def sample() -> Transitions:
                drawn = source.sample(batch)
                assert drawn is not None
                return drawn

            def update() -> int:
                source.update(sample(), errors)
                return batch

            return {
                "where": "Ray",
                "compression": config.replay.compression,
                "capacity": config.replay.capacity,
                "batch": batch,
                "adds_per_s": _rate(add, rounds, seconds),
                "samples_per_s": _rate(lambda: len(sample().action_B), rounds, seconds),
                "updates_per_s": _rate(update, rounds, seconds),
            }
        finally:
            shards.close()


def _rate(call: Callable[[], int], rounds: int, seconds: float) -> float:
    """Transitions per second, the median over the rounds."""
    rates = []
    for _ in range(rounds):
        done, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            done += call()
        rates.append(done / passed)
    return statistics.median(rates)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
