"""What a training on a cluster bears: its processes are killed and paused, its servers and disk taken away.

All is real and on this machine: Ray nodes with raylets of their own, PostgreSQL, an MLflow server, the ROM.
The moments and the victims follow from a seed; which process of a kind is met depends on who is there.
"""

import dataclasses
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.bench.clock import LATE_S, Clock
from mario_dist.bench.cluster import LocalCluster, local_cluster
from mario_dist.bench.disk import filled, small_disk
from mario_dist.bench.mlflow_server import MLflowServer
from mario_dist.bench.outage import ENDLESS, Training, count_episodes, endless, launch
from mario_dist.bench.postgres import PostgresServer, temporary_postgres
from mario_dist.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.store import RunStore

RUN = "chaos"
KINDS = ("actor", "shard", "learner", "driver", "node", "pause", "postgres", "mlflow", "disk", "clock")
"""SIGKILL for a rollout actor, a replay shard, the learner (which holds the queue), the driver (which writes
to the store) or all processes of a node; a pause of an actor, a shard or the learner, which delays its
messages; a server that goes and comes back; a full disk; a clock that jumps, on all nodes at once."""

_ACTORS = 2
_PAUSE_S = (1.0, 6.0)
_AWAY_S = 5.0
_BETWEEN_S = (3.0, 8.0)
_POLL_S = 0.2
_PATIENCE_S = 240.0
_LINES = 20
_DISK_BYTES = 2**28
_JUMPS_S = (-45, 45, 3_600, 86_400)
"""Of the clock. Further back, Ray's timers (Boost's ``deadline_timer``) stand still for as long, and it
places nothing new: a training goes on, but the next fault would be its end."""
_SIGNS = {"actor": "actor_restarts", "shard": "replay_shard_restarts", "learner": "starts"}
"""The count that says that the run saw the fault: one of its reports', or ``Hit.starts`` where it ends of it,
maybe a report or two later."""
_LOSSES = ("actor_restarts", "lost_unrolls", "replay_lost")
_CLASSES = {
    "actor": ("RolloutActor",),
    "shard": ("ShardActor",),
    "learner": ("LearnerActor", "ReplayLearnerActor"),
    "pause": ("RolloutActor", "ShardActor", "LearnerActor", "ReplayLearnerActor"),
}


@dataclass
class Hit:
    """One fault. recovered_s: until a report that was made after it, with all actors and all servers there.
    starts: how often the run had ended, the last time with the line ``said``, and was started again."""

    kind: str
    at_step: int
    recovered_s: float = 0.0
    starts: int = 0
    said: str = ""


class Losses:
    """What a run lost in all its starts, each of which counts from 0."""

    def __init__(self) -> None:
        self.total = dict.fromkeys(_LOSSES, 0)
        self._at = -1.0

    def add(self, report: Mapping[str, float]) -> None:
        """The last report of a start; that of the start before where there is none."""
        if report and report["agent_steps"] != self._at:
            self._at = report["agent_steps"]
            for name in _LOSSES:
                self.total[name] += int(report.get(name, 0.0))


@dataclass
class Scene:
    """All that runs."""

    cluster: LocalCluster
    postgres: PostgresServer
    mlflow: MLflowServer
    runs: Path
    config: Path
    env: Mapping[str, str]
    store: RunStore
    log: Path
    training: Training
    clock: Clock | None = None
    losses: Losses = field(default_factory=Losses)

    def train(self) -> None:
        """The same command again."""
        self.losses.add(self.reported())
        self.training = _train(self.config, self.cluster, self.log, self.env)

    def reported(self) -> dict[str, float]:
        """The newest report; empty where there is none, or nobody to ask."""
        try:
            rows = self.store.newest_metrics(RUN)
        except UserError:
            return {}
        found = {row["name"]: row["value"] for row in rows}
        return {**found, "agent_steps": float(rows[0]["agent_steps"])} if rows else {}


def bench_chaos(
    config: RunConfig,
    kinds: Sequence[str],
    each: int,
    seed: int,
    announce: Callable[[str], None],
    minutes: float = math.inf,
) -> dict[str, Any]:
    """Train as ``config`` says, without evaluations, through ``each`` faults of every kind, in random order.

    No fault begins later than ``minutes`` after the first report. recovered_s: median and most, by kind.
    starts: how often the run ended and was started again. lost: by the last report of each start:
    actor_restarts, each with the unroll that was being made, if any was; lost_unrolls, on their way to the
    queue; replay_lost, transitions in the replay or on their way there. books: see ``_books``. failed: why
    the faults ended before time, such as a run that did not come back, or stopped in more than one line;
    else empty.

    Raises ``UserError`` where a fault cannot be done here, or the training does not begin.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        names = ", ".join(kind or "without a name" for kind in sorted(unknown))
        raise UserError(f"there is no fault {names}; faults are {', '.join(KINDS)}")
    if "shard" in kinds and not config.algo.replayed:
        raise UserError(f"algo.name={config.algo.name} has no replay shards: leave out the fault shard")
    if "disk" in kinds and os.geteuid() != 0:
        raise UserError("the fault disk mounts a small file system, which takes root: leave it out")
    order = [kind for kind in kinds for _ in range(each)]
    dice = random.Random(seed)
    dice.shuffle(order)
    began = time.monotonic()
    with _scene(config, kinds, announce) as scene:
        _await_report(scene)
        announce(f"training with {_ACTORS} rollout actors; {len(order)} faults follow")
        hits: list[Hit] = []
        failed = ""
        until = time.monotonic() + 60.0 * minutes
        try:
            for number, kind in enumerate(order, 1):
                if time.monotonic() > until:
                    break
                scene.training.go_on(dice.uniform(*_BETWEEN_S))
                hit = _hit(scene, kind, dice)
                hits.append(hit)
                what = f", started again {hit.starts} x: {hit.said or 'it was killed'}" if hit.starts else ""
                announce(f"{number:3d} {kind:9s} recovered after {hit.recovered_s:5.1f} s{what}")
            scene.training.go_on(_BETWEEN_S[0])
            scene.training.stop()
        except UserError as error:
            failed = str(error)
            announce("\n".join(["the training's last lines:", *scene.training.said()[-_LINES:]]))
            scene.training.kill()
        scene.losses.add(scene.reported())
        books = _books(scene.store, RUN, scene.runs / RUN, time.monotonic() - began)
    spread = {
        kind: {
            "times": len(times := [hit.recovered_s for hit in hits if hit.kind == kind]),
            "starts": sum(hit.starts for hit in hits if hit.kind == kind),
            "median_s": statistics.median(times),
            "most_s": max(times),
        }
        for kind in kinds
        if any(hit.kind == kind for hit in hits)
    }
    return {
        "machine": machine.describe(),
        "seed": seed,
        "actors": _ACTORS,
        "planned": len(order),
        "failed": failed,
        "faults": spread,
        "lost": scene.losses.total,
        "books": books,
        "hits": [dataclasses.asdict(hit) for hit in hits],
    }


@contextmanager
def _scene(config: RunConfig, kinds: Sequence[str], announce: Callable[[str], None]) -> Iterator[Scene]:
    config = dataclasses.replace(
        endless(config), system=dataclasses.replace(config.system, max_restarts=ENDLESS)
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mario-dist-chaos-")))
        clock = Clock(folder / "clock") if "clock" in kinds else None
        announce("PostgreSQL, MLflow, a Ray cluster of three nodes and the training start: some minutes")
        postgres = stack.enter_context(temporary_postgres())
        mlflow = MLflowServer(folder, f"sqlite:///{folder}/mlflow.db")
        stack.callback(mlflow.kill)
        mlflow.wait()
        runs = folder / "runs"
        runs.mkdir()
        if "disk" in kinds:
            stack.enter_context(small_disk(runs, _DISK_BYTES))
        cluster = stack.enter_context(local_cluster({} if clock is None else clock.env))
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
        log = folder / "log"
        training = _train(path, cluster, log, env)
        scene = Scene(cluster, postgres, mlflow, runs, path, env, store, log, training, clock)
        try:
            yield scene
        finally:
            scene.training.kill()


def _train(config: Path, cluster: LocalCluster, log: Path, env: Mapping[str, str]) -> Training:
    return launch(["train", str(config), f"--address={cluster.address}", f"--run-id={RUN}"], log, env)


def _hit(scene: Scene, kind: str, dice: random.Random) -> Hit:
    """One fault, and the way back from it."""
    report = scene.reported()
    hit = Hit(kind, int(report.get("agent_steps", 0)))
    before = time.monotonic()
    if kind == "driver":
        scene.training.kill()
        hit.starts = 1
        scene.train()
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
        scene.mlflow.wait()
    elif kind == "disk":
        with filled(scene.runs):
            time.sleep(_AWAY_S)
    elif kind == "clock":
        assert scene.clock is not None
        scene.clock.jump(dice.choice(_JUMPS_S))
        time.sleep(LATE_S)
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
    until = time.monotonic() + _PATIENCE_S
    seen: list[float] = []
    while len(seen) < 3:
        if time.monotonic() > until:
            said = scene.training.said()[-1:]
            raise UserError(f"no way back from {hit.kind} for {_PATIENCE_S:.0f} s: {said}")
        if scene.training.exit_code() is not None:
            _check_end(scene, hit)
            hit.starts += 1
            seen = []
            scene.train()
        if hit.starts and not scene.training.has_reported():
            time.sleep(_POLL_S)
            continue  # what is stored is still of the start before
        report = scene.reported()
        steps = report.get("agent_steps")
        # After a start the reports count from 0, and no report has ``starts``.
        noticed = hit.starts > 0 or all(report.get(name, 0.0) > value for name, value in before.items())
        complete = len(seen) < 2 or (noticed and report.get("rollout_actors", 0.0) >= _ACTORS)
        if steps is not None and steps not in seen[-1:] and complete:
            seen.append(steps)
        time.sleep(_POLL_S)


def _check_end(scene: Scene, hit: Hit) -> None:
    """A run that gives up says why in one line."""
    lines, code = scene.training.said(), scene.training.exit_code()
    hit.said = lines[-1] if lines else ""
    if code != 1 or not hit.said.startswith("error: ") or any("Traceback" in line for line in lines):
        raise UserError(f"after {hit.kind} the run ended with exit code {code}, not in one line: {hit.said}")


def _await_report(scene: Scene) -> None:
    first = Hit("start", 0)
    _recover(scene, first, {})
    if first.starts:
        raise UserError(f"the training does not start: {first.said}")


def _books(store: RunStore, run_id: str, directory: Path, most_s: float) -> dict[str, Any]:
    """What the store, the checkpoints and the reports say of the whole run, and whether it fits together.

    Every episode that the run counted is stored once. The steps of all episodes are at most the run's. Agent
    steps, versions of the weights and the run's time only grow from report to report, the time to no more
    than ``most_s``. Every checkpoint is whole.
    """
    checkpoints = list_checkpoints(directory / "checkpoints")
    whole = [path for path in checkpoints if _is_whole(path)]
    counters = load_checkpoint(whole[0]).meta["counters"] if whole else {"episodes": 0, "agent_steps": 0}
    rows = store.episodes(run_id)
    episodes = count_episodes(rows, counters["episodes"])
    reports = store.metrics(run_id, ["version"])
    versions = [row["value"] for row in reports]
    steps = [row["agent_steps"] for row in reports]
    times = [row["wall_s"] for row in reports]
    length = sum(row["length"] for row in rows)
    fits = {
        "every_episode_once": episodes["counted"] == episodes["stored"] == episodes["distinct"],
        "steps_once": 0 < length <= counters["agent_steps"] and steps == sorted(set(steps)),
        "versions_grow": versions == sorted(versions),
        "time_passes": times == sorted(times) and times[-1:] <= [most_s],
        "checkpoints_whole": len(whole) == len(checkpoints) > 0,
    }
    return {
        **fits,
        "wrong": [name for name, holds in fits.items() if not holds],
        "episodes": episodes,
        "agent_steps": counters["agent_steps"],
        "steps_of_episodes": length,
        "checkpoints": len(checkpoints),
        "incarnations": len({row["incarnation"] for row in rows}),
    }


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True
