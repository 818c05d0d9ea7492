"""Whether a long training on an overloaded machine stays as it is: memory, queue and object store."""

import dataclasses
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mario_dist import machine
from mario_dist.bench.outage import Training, endless, reporting, trained, wall_s_now
from mario_dist.config import RunConfig
from mario_dist.store import RunStore

_EVERY_S = 2.0
_SMALL_MIB = 16.0
_SMALL_SHARE = 0.05


def bench_load(
    config: RunConfig, minutes: float, times: int, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Train as ``config`` says on Ray, with ``times`` rollout actors for every core, for so many minutes.

    processes: of each kind its number, private_mib (resident memory that it shares with nobody: median of
    the last quarter of the time, of the largest one), and growth_mib_per_h, the most of any, from the median
    of the second quarter to that of the last one. queue_depth: unrolls that wait, mean of the same quarters.
    spilled_bytes: of Ray's object store, on the disk. steady: no process grew by more than 16 MiB and 5 %
    between the quarters; the queue did not by more than an unroll for every actor; nothing spilled.

    Raises ``UserError`` where the training ends by itself.
    """
    actors = times * machine.cores()
    config = dataclasses.replace(
        endless(config),
        system=dataclasses.replace(config.system, driver="ray"),
        rollout=dataclasses.replace(config.rollout, actors=actors),
    )
    # The path of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="md-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        runs = Path(folder)
        url = f"sqlite:///{runs}/mario.db"
        memory: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        with (
            RunStore(url) as store,
            trained(config, url, runs, {"RAY_TMPDIR": folder}) as training,
        ):
            run = training.wait_for(lambda: reporting(store))
            announce(f"training with {actors} rollout actors on {machine.cores()} cores")
            begin = wall_s_now(run)
            end = begin + 60.0 * minutes
            while (now := wall_s_now(run)) < end:
                _look(training, now, memory)
                training.go_on(_EVERY_S)
            spilled = sum(
                path.stat().st_size for path in runs.rglob("ray_spilled_objects*/*") if path.is_file()
            )
            training.stop()
            reports = store.metrics(run.id, ["queue_depth"])
            agent_steps = store.get_run(run.id).agent_steps
        quarters = [float(mark) for mark in np.linspace(begin, end, 5)]
        depths = [(row["wall_s"], row["value"]) for row in reports]
    processes = _processes(memory, quarters)
    queue = {name: _between(depths, *span, np.mean) for name, span in _spans(quarters).items()}
    steady = {
        "memory": all(row["steady"] for row in processes.values()),
        "queue": queue["last"] <= queue["second"] + actors,
        "object_store": spilled == 0,
    }
    return {
        "machine": machine.describe(),
        "minutes": minutes,
        "actors": actors,
        "agent_steps": agent_steps,
        "processes": processes,
        "queue_depth": queue,
        "spilled_bytes": spilled,
        "steady": steady,
    }


def _look(training: Training, now: float, memory: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    """Note what every process of a training has for itself alone, in MiB."""
    for process in training.processes():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            info = process.memory_info()
            memory[_kind(process), process.pid].append((now, (info.rss - info.shared) / 2**20))


def _kind(process: psutil.Process) -> str:
    """``ray::RolloutActor`` of any method, a program's name, ``driver`` for what conducts."""
    words = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].split(".")[0].split("(")[0]
    if "mario_dist.cli.main" in words:
        return "driver"
    name = Path(words[0]).name
    return next((Path(word).name for word in words[1:3] if word.endswith(".py")), name)


def _spans(quarters: Sequence[float]) -> dict[str, tuple[float, float]]:
    return {"second": (quarters[1], quarters[2]), "last": (quarters[3], quarters[4])}


def _between(
    series: Sequence[tuple[float, float]], begin: float, end: float, of: Callable[[Any], Any]
) -> float:
    values = [value for at, value in series if begin <= at <= end]
    return float(of(values)) if values else float("nan")


def _processes(
    memory: dict[tuple[str, int], list[tuple[float, float]]], quarters: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """By kind, of those that lived from the second quarter to the last."""
    hours = (quarters[3] + quarters[4] - quarters[1] - quarters[2]) / 2 / 3600
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (kind, _), series in memory.items():
        before, after = (_between(series, *span, np.median) for span in _spans(quarters).values())
        if not np.isnan(before + after):
            rows[kind].append((before, after))
    return {
        kind: {
            "number": len(pairs),
            "private_mib": max(after for _, after in pairs),
            "growth_mib_per_h": max(after - before for before, after in pairs) / hours,
            "steady": all(b - a <= max(_SMALL_MIB, _SMALL_SHARE * a) for a, b in pairs),
        }
        for kind, pairs in sorted(rows.items())
    }
