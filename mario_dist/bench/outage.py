"""What a training bears of its database's absence: a real PostgreSQL is stopped under it and comes back."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.bench.postgres import temporary_postgres
from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.store import EpisodeRow, MetricRow, RunRow, RunStore
from mario_dist.system.session import JOURNAL

_POLL_S = 0.1
_TIMEOUT_S = 180.0
ENDLESS = 10**9
"""Steps, or anything else that is counted, more than a benchmark lasts for."""


def bench_outage(
    config: RunConfig, down_s: float, around_s: float, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Train as ``config`` says, without evaluations, while the database is away for ``down_s`` seconds.

    The training is a process of its own. ``around_s`` seconds after its first report the database is stopped,
    and as long after the database's return the training is sent a SIGTERM.

    steps_per_s: agent steps by the metrics that the run store has in the end. ratio: the speed during the
    outage over that before and after. recovered_s: from the database's return until it had every row of the
    outage; up to a report and a write more, since it is asked for the next one. episodes: ``counted`` by the
    training's last checkpoint, ``stored`` in the run store; ``distinct`` of these by the numbers that the
    workers gave them, and the ``holes`` in these. exactly_once: all of them are there once, and the run's
    journal is gone.

    Raises ``UserError`` where the dev dependencies are not installed or the training fails.
    """
    config = endless(config)
    with (
        temporary_postgres() as server,
        tempfile.TemporaryDirectory(prefix="mario-dist-outage-") as folder,
        RunStore(server.url) as store,
        trained(config, server.url, Path(folder)) as training,
    ):
        announce("the training begins")
        run = training.wait_for(lambda: reporting(store))
        began = wall_s_now(run)
        training.go_on(around_s)
        down = wall_s_now(run)
        server.stop()
        announce("the database is away")
        training.go_on(down_s)
        server.start()
        up = wall_s_now(run)
        announce(f"it is back after {up - down:.1f} s")
        training.wait_for(lambda: store.newest_metrics(run.id)[0]["wall_s"] > up)
        recovered_s = wall_s_now(run) - up
        training.go_on(around_s - recovered_s)
        end = wall_s_now(run)
        training.stop()
        speeds = speeds_between(store.metrics(run.id, ["episodes"]), (began, down, up, end))
        directory = Path(folder) / run.id
        newest = load_checkpoint(list_checkpoints(directory / "checkpoints")[0])
        episodes = count_episodes(store.episodes(run.id), newest.meta["counters"]["episodes"])
        journal_gone = not (directory / JOURNAL).exists()
    around = ((down - began) * speeds[0] + (end - up) * speeds[2]) / (down - began + end - up)
    once = episodes["counted"] == episodes["stored"] == episodes["distinct"] and not episodes["holes"]
    return {
        "machine": machine.describe(),
        "down_s": up - down,
        "steps_per_s": dict(zip(("before", "during", "after"), speeds, strict=True)),
        "ratio": speeds[1] / around,
        "recovered_s": recovered_s,
        "episodes": episodes,
        "exactly_once": once and journal_gone,
    }


def endless(config: RunConfig) -> RunConfig:
    """The same training, without evaluations and an end of its own."""
    return dataclasses.replace(
        config,
        total_steps=ENDLESS,
        evaluation=dataclasses.replace(config.evaluation, every_steps=0),
        stop=dataclasses.replace(config.stop, clear_rate=None),
    )


def speeds_between(reports: Sequence[MetricRow], marks: Sequence[float]) -> list[float]:
    """Agent steps per second between each two of these times of a run, by its reports."""
    steps = np.interp(marks, [r["wall_s"] for r in reports], [r["agent_steps"] for r in reports])
    return [float(rate) for rate in np.diff(steps) / np.diff(marks)]


def count_episodes(rows: Sequence[EpisodeRow], counted: int) -> dict[str, int]:
    """``counted`` by the training, beside those that are stored. Each worker numbers its own from 0."""
    numbers = {(row["actor"], row["incarnation"], row["sequence"]) for row in rows}
    last: dict[tuple[int, int], int] = {}
    for actor, incarnation, sequence in numbers:
        last[actor, incarnation] = max(sequence, last.get((actor, incarnation), 0))
    expected = sum(sequence + 1 for sequence in last.values())
    return {
        "counted": counted,
        "stored": len(rows),
        "distinct": len(numbers),
        "holes": expected - len(numbers),
    }


def reporting(store: RunStore) -> RunRow | None:
    """The run, once it has reported."""
    return next((run for run in store.list_runs(1) if store.newest_metrics(run.id)), None)


def wall_s_now(run: RunRow) -> float:
    """Now, on the clock of the run's metrics."""
    return (datetime.now(UTC) - run.created_at).total_seconds()


class Training:
    """A process that trains. Every wait raises ``UserError`` where it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, before: int) -> None:
        """before: bytes that ``log`` had."""
        self._process = process
        self._log = log
        self._from = before

    def wait_for[T](self, ask: Callable[[], T | None]) -> T:
        """What ``ask`` answers, once that is true."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not (answer := ask()):
            if time.monotonic() > deadline:
                raise self._failed(f"has not reported for {_TIMEOUT_S:.0f} s")
            self.go_on(_POLL_S)
        return answer

    def go_on(self, seconds: float) -> None:
        try:
            code = self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return
        raise self._failed(f"ended with exit code {code}")

    def ended(self, timeout_s: float) -> int:
        """Its exit code, once it has ended. Raises ``subprocess.TimeoutExpired``."""
        return self._process.wait(timeout_s)

    def exit_code(self) -> int | None:
        """None while it goes on."""
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def said(self) -> list[str]:
        """The lines that it has printed."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]

    def has_reported(self) -> bool:
        """Whether this process has trained, and not only one before it with the same log."""
        with self._log.open("rb") as lines:
            lines.seek(self._from)
            return any(line.startswith(b"steps=") for line in lines)

    def processes(self) -> list[psutil.Process]:
        """Itself and all that it started."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def stop(self) -> None:
        """As a user stops it."""
        self._process.send_signal(signal.SIGTERM)
        if code := self._process.wait(_TIMEOUT_S):
            raise self._failed(f"ended with exit code {code}")

    def _failed(self, how: str) -> UserError:
        return UserError(f"the training {how}: {[*self.said()[-1:], 'it said nothing'][0]}")


@contextmanager
def trained(
    config: RunConfig, store_url: str, runs: Path, env: Mapping[str, str] | None = None
) -> Iterator[Training]:
    """A training in a process of its own, which ends with the block. env: for it, beside its places."""
    path, log = runs / "config.yaml", runs / "log"
    path.write_text(configuration.dump(config))
    here = {
        "MARIO_DIST_DB": store_url,
        "MARIO_DIST_RUNS": str(runs),
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs}/mlflow.db",
    }
    training = launch(["train", str(path)], log, os.environ | here | dict(env or {}))
    try:
        yield training
    finally:
        training.kill()


def launch(words: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None) -> Training:
    """`mario-dist WORDS`, whose lines follow those that ``log`` has."""
    with log.open("ab") as output:
        before = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mario_dist.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
        )
    return Training(process, log, before)
