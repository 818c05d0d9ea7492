"""What a training on a cluster bears: its processes are killed and paused, its servers and disk taken away.

All is real and on this machine: Ray nodes with raylets of their own, PostgreSQL, an MLflow server, the ROM.
The moments and the victims follow from a seed; which process of a kind is met depends on who is there.
"""

import dataclasses
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.bench.cluster import LocalCluster, local_cluster
from mario_dist.bench.outage import ENDLESS, count_episodes
from mario_dist.bench.postgres import PostgresServer, temporary_postgres
from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.store import RunStore

RUN = "chaos"
KINDS = ("actor", "shard", "learner", "driver", "node", "pause", "postgres", "mlflow", "disk")
"""SIGKILL for a rollout actor, a replay shard, the learner (which holds the queue), the driver (which writes
to the store) or all processes of a node; a pause of any of them, which delays its messages; a server that
goes and comes back; a full disk."""

_ACTORS = 2
_PAUSE_S = (1.0, 6.0)
_AWAY_S = 5.0
_BETWEEN_S = (3.0, 8.0)
_POLL_S = 0.2
_PATIENCE_S = 240.0
_DISK_BYTES = 2**28
_SIGNS = {"actor": "actor_restarts", "shard": "replay_shard_restarts"}
"""The count by which a run says that it saw the fault."""
_CLASSES = {
    "actor": ("RolloutActor",),
    "shard": ("ShardActor",),
    "learner": ("LearnerActor", "ReplayLearnerActor"),
    "pause": ("RolloutActor", "ShardActor", "LearnerActor", "ReplayLearnerActor"),
}


@dataclass
class Hit:
    """One fault. recovered_s: until a report that was made after it, with all actors and all servers there.
    ended: the run stopped, with ``said`` as its last line, and was started again by the same command."""

    kind: str
    at_step: int
    recovered_s: float = 0.0
    ended: bool = False
    said: str = ""


@dataclass
class Scene:
    """All that runs."""

    cluster: LocalCluster
    postgres: PostgresServer
    mlflow: "Server"
    runs: Path
    config: Path
    env: Mapping[str, str]
    store: RunStore
    log: Path
    driver: "subprocess.Popen[bytes] | None" = None

    def train(self) -> None:
        """The command, for the first time or again."""
        with self.log.open("ab") as output:
            self.driver = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mario_dist.cli.main",
                    "train",
                    str(self.config),
                    f"--address={self.cluster.address}",
                    f"--run-id={RUN}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
            )

    def reported(self) -> dict[str, float]:
        """The newest report; empty where there is none, or nobody to ask."""
        try:
            rows = self.store.newest_metrics(RUN)
        except UserError:
            return {}
        found = {row["name"]: row["value"] for row in rows}
        return {**found, "agent_steps": float(rows[0]["agent_steps"])} if rows else {}

    def last_line(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Server:
    """An MLflow server on a fixed port, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._folder = folder
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers=1", "--host=127.0.0.1"),
                    f"--port={self._port}",
                    f"--backend-store-uri=sqlite:///{self._folder}/mlflow.db",
                    f"--artifacts-destination={self._folder}/artifacts",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(_POLL_S)
        raise UserError("the MLflow server does not start")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def bench_chaos(
    config: RunConfig, kinds: Sequence[str], each: int, seed: int, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Train as ``config`` says, without evaluations, through ``each`` faults of every kind, in random order.

    recovered_s: median and most, by kind. ended: how often the run stopped and was started again.
    lost_unrolls: as the run counts them. books: what must be as it is, and whether it is; see ``_books``.

    Raises ``UserError`` where the run does not come back, or stops in more than one line.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise UserError(f"there is no fault {', '.join(sorted(unknown))}; faults are {', '.join(KINDS)}")
    if "shard" in kinds and not config.algo.replayed:
        raise UserError(f"algo.name={config.algo.name} has no replay shards: leave out the fault shard")
    if "disk" in kinds and os.geteuid() != 0:
        raise UserError("the fault disk mounts a small file system, which takes root: leave it out")
    order = [kind for kind in kinds for _ in range(each)]
    dice = random.Random(seed)
    dice.shuffle(order)
    with _scene(config, small_disk="disk" in kinds) as scene:
        scene.train()
        _await_report(scene, announce)
        announce(f"training with {_ACTORS} rollout actors; {len(order)} faults follow")
        hits = []
        for number, kind in enumerate(order, 1):
            _go_on(scene, dice.uniform(*_BETWEEN_S))
            hit = _hit(scene, kind, dice)
            hits.append(hit)
            what = f", ended: {hit.said}" if hit.ended else ""
            announce(f"{number:3d} {kind:9s} recovered after {hit.recovered_s:5.1f} s{what}")
        _go_on(scene, 5.0)
        lost = scene.reported().get("lost_unrolls", 0.0)
        assert scene.driver is not None
        scene.driver.send_signal(signal.SIGTERM)
        if scene.driver.wait(_PATIENCE_S):
            raise UserError(f"the run did not stop well: {scene.last_line()}")
        books = _books(scene)
    spread = {
        kind: {
            "times": len(times := [hit.recovered_s for hit in hits if hit.kind == kind]),
            "ended": sum(hit.ended for hit in hits if hit.kind == kind),
            "median_s": statistics.median(times),
            "most_s": max(times),
        }
        for kind in kinds
    }
    return {
        "machine": machine.describe(),
        "seed": seed,
        "actors": _ACTORS,
        "faults": spread,
        "lost_unrolls": int(lost),
        "books": books,
        "hits": [dataclasses.asdict(hit) for hit in hits],
    }


@contextmanager
def _scene(config: RunConfig, small_disk: bool) -> Iterator[Scene]:
    config = dataclasses.replace(
        config,
        total_steps=ENDLESS,
        evaluation=dataclasses.replace(config.evaluation, every_steps=0),
        stop=dataclasses.replace(config.stop, clear_rate=None),
        system=dataclasses.replace(config.system, max_restarts=ENDLESS),
    )
    with ExitStack() as stack:
        postgres = stack.enter_context(temporary_postgres())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mario-dist-chaos-")))
        mlflow = Server(folder)
        stack.callback(mlflow.kill)
        runs = folder / "runs"
        runs.mkdir()
        if small_disk:
            options = f"size={_DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(runs)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(runs)], check=False)
        cluster = stack.enter_context(local_cluster())
        beside = (config.replay.shards or 1) if config.algo.replayed else 0
        cluster.add_node("learner", (config.learner.threads or 1) + beside, {"learner": 1})
        cluster.add_node("rollouts", _ACTORS)
        path = folder / "config.yaml"
        path.write_text(configuration.dump(config))
        env = {
            **cluster.env,
            "MARIO_DIST_DB": postgres.url,
            "MARIO_DIST_RUNS": str(runs),
            "MLFLOW_TRACKING_URI": mlflow.url,
        }
        store = stack.enter_context(RunStore(postgres.url))
        scene = Scene(cluster, postgres, mlflow, runs, path, env, store, folder / "log")
        try:
            yield scene
        finally:
            if scene.driver is not None:
                scene.driver.kill()
                scene.driver.wait()


def _hit(scene: Scene, kind: str, dice: random.Random) -> Hit:
    """One fault, and the way back from it."""
    assert scene.driver is not None
    report = scene.reported()
    hit = Hit(kind, int(report.get("agent_steps", 0)))
    before = time.monotonic()
    if kind == "driver":
        scene.driver.kill()
        scene.driver.wait()
    elif kind == "node":
        scene.cluster.kill_node("rollouts")
        scene.cluster.add_node("rollouts", _ACTORS)
    elif kind == "postgres":
        scene.postgres.stop()
        time.sleep(_AWAY_S)
        scene.postgres.start()
    elif kind == "mlflow":
        scene.mlflow.kill()
        time.sleep(_AWAY_S)
        scene.mlflow.start()
    elif kind == "disk":
        filler = scene.runs / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        time.sleep(_AWAY_S)
        filler.unlink()
    else:
        victim = dice.choice(_victims(scene, kind))
        if kind == "pause":
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
                time.sleep(dice.uniform(*_PAUSE_S))
                victim.resume()
        else:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
    sign = _SIGNS.get(kind)
    _recover(scene, hit, {} if sign is None else {sign: report.get(sign, 0.0)})
    hit.recovered_s = time.monotonic() - before
    return hit


def _victims(scene: Scene, kind: str) -> list[psutil.Process]:
    """The processes of the cluster's actors that are of this kind."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        titles = tuple(f"ray::{name}" for name in _CLASSES[kind])
        found = []
        for process in scene.cluster.processes():
            with suppress(psutil.NoSuchProcess, IndexError):
                if process.cmdline()[0].partition(".")[0] in titles:
                    found.append(process)
        if found:
            return sorted(found, key=lambda process: process.pid)
        time.sleep(_POLL_S)
    raise UserError(f"there is no process of the kind {kind}")


def _recover(scene: Scene, hit: Hit, before: Mapping[str, float]) -> None:
    """Return once two reports came after the fault, the second with all actors and more of ``before``.

    A run that ended is started again. Raises ``UserError`` where that does not help, or it ended badly.
    """
    assert scene.driver is not None
    started = time.monotonic()
    seen: list[float] = []
    while len(seen) < 3:
        if time.monotonic() - started > _PATIENCE_S:
            raise UserError(f"no way back from {hit.kind} for {_PATIENCE_S:.0f} s: {scene.last_line()}")
        if scene.driver.poll() is not None:
            if hit.kind != "driver":
                _check_end(scene, hit)
            hit.ended = True
            seen = []
            scene.train()
        report = scene.reported()
        steps = report.get("agent_steps")
        noticed = hit.ended or all(report.get(name, 0.0) > value for name, value in before.items())
        complete = len(seen) < 2 or (noticed and report.get("rollout_actors", 0.0) >= _ACTORS)
        if steps is not None and steps not in seen[-1:] and complete:
            seen.append(steps)
        time.sleep(_POLL_S)


def _check_end(scene: Scene, hit: Hit) -> None:
    """A run that gives up says why in one line."""
    assert scene.driver is not None
    hit.said = scene.last_line()
    code, text = scene.driver.returncode, scene.log.read_text(errors="replace")
    if code != 1 or not hit.said.startswith("error: ") or "Traceback" in text:
        raise UserError(f"after {hit.kind} the run ended with exit code {code}, not in one line: {hit.said}")


def _await_report(scene: Scene, announce: Callable[[str], None]) -> None:
    first = Hit("start", 0)
    _recover(scene, first, {})
    if first.ended:
        raise UserError(f"the training does not start: {scene.last_line()}")


def _go_on(scene: Scene, seconds: float) -> None:
    assert scene.driver is not None
    with suppress(subprocess.TimeoutExpired):
        code = scene.driver.wait(seconds)
        raise UserError(f"the run ended by itself with exit code {code}: {scene.last_line()}")


def _books(scene: Scene) -> dict[str, Any]:
    """What the store, the checkpoints and the reports say of the whole run, and whether it fits together.

    Every episode that the run counted is stored once. The steps of all episodes are at most the run's. Agent
    steps and versions of the weights only grow from report to report. Every checkpoint is whole.
    """
    checkpoints = list_checkpoints(scene.runs / RUN / "checkpoints")
    counters = [load_checkpoint(path).meta["counters"] for path in checkpoints]
    rows = scene.store.episodes(RUN)
    episodes = count_episodes(rows, counters[0]["episodes"])
    versions = [row["value"] for row in scene.store.metrics(RUN, ["version"])]
    steps = [row["agent_steps"] for row in scene.store.metrics(RUN, ["version"])]
    once = episodes["counted"] == episodes["stored"] == episodes["distinct"]
    length = sum(row["length"] for row in rows)
    fits = {
        "every_episode_once": once,
        "steps_once": 0 < length <= counters[0]["agent_steps"] and steps == sorted(set(steps)),
        "versions_grow": versions == sorted(versions),
        "checkpoints_whole": len(counters) > 0,
    }
    return {
        **fits,
        "balanced": all(fits.values()),
        "episodes": episodes,
        "agent_steps": counters[0]["agent_steps"],
        "steps_of_episodes": length,
        "checkpoints": len(counters),
        "incarnations": len({row["incarnation"] for row in rows}),
    }
