"""What a training bears of its cluster's changes: Ray nodes on this machine, killed and added under it."""

import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.bench.network import Network, network
from mario_dist.bench.outage import (
    ENDLESS,
    Training,
    count_episodes,
    endless,
    launch,
    reporting,
    speeds_between,
    wall_s_now,
)
from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.store import MetricRow, RunStore

_START_S = 180.0
_STARTS = 3
_POLL_S = 0.2
_WINDOW_S = 3.0
_ENOUGH = 0.8
"""Of what the actors that are left made before: from there on the training has recovered."""

_HEAD = "head"
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""What cluster/ and k8s/ set on their heads, so that a node that is gone is noticed within seconds."""


class LocalCluster:
    """Ray nodes on this machine, each with its own raylet and folder, as on machines of their own.

    Where there is a ``network``, all but the head have a namespace and an address in it: what they say to
    each other goes through its bridge, and a node that is killed says nothing more.

    The head has no cores. Its Jobs API, at ``url``, wants the token in ``env``.
    """

    def __init__(
        self, folder: Path, network: Network | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """folder: for the nodes' files; its path must be short, since Ray puts sockets there.

        env: for the nodes, and whoever uses ``env``, beside this process's own.
        """
        self._folder = folder
        self._network = network
        self._own_address = _own_address() if network is None else network.address
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._port, dashboard, client, metrics = _free_ports(4)
        self.url = f"http://127.0.0.1:{dashboard}"
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        bin_folder = str(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            **(env or {}),
            **HEALTH,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # It would run the nodes' workers through `uv run`.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._head = [
            "--head",
            "--num-cpus=0",
            f"--node-ip-address={self._own_address}",
            f"--port={self._port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--metrics-export-port={metrics}",
        ]

    def start_head(self) -> None:
        """Returns once nodes may join."""
        self._start(_HEAD, self._head)

    def add_node(self, name: str, cpus: int, resources: Mapping[str, float] | None = None) -> None:
        """Returns once it belongs to the cluster."""
        there, address = ([], self._own_address) if self._network is None else self._network.join(name)
        options = [
            f"--address={self.address}",
            f"--node-ip-address={address}",
            f"--num-cpus={cpus}",
            f"--resources={json.dumps(dict(resources or {}))}",
        ]
        self._start(name, options, there)

    @property
    def address(self) -> str:
        """Where a driver joins."""
        return f"{self._own_address}:{self._port}"

    def processes(self) -> list[psutil.Process]:
        """All of all nodes."""
        found: list[psutil.Process] = []
        for node in self._nodes.values():
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(node.pid).children(recursive=True)
        return found

    def kill_node(self, name: str) -> None:
        """SIGKILL for all of its processes at once, after its cable was pulled where it has one."""
        among = None if name == _HEAD else self._network
        if among is not None:
            among.cut(name)
        _kill_tree(self._nodes.pop(name))
        if among is not None:
            among.leave(name)

    def close(self) -> None:
        for name in reversed(list(self._nodes)):
            self.kill_node(name)

    def _start(self, name: str, options: Sequence[str], there: Sequence[str] = ()) -> None:
        """Tried again where Ray gives up: on a slow machine too it waits 30 s for its own processes."""
        for _ in range(_STARTS):
            if (failure := self._start_once(name, options, there)) is None:
                return
            _kill_tree(self._nodes.pop(name))
        raise UserError(f"the Ray node {name} did not start: {failure}")

    def _start_once(self, name: str, options: Sequence[str], there: Sequence[str]) -> str | None:
        """What it said last, where it does not start."""
        log = self._folder / f"{name}.log"
        # Ports of their own: the nodes share this machine's address.
        (agent,) = _free_ports(1)
        options = [
            *options,
            f"--dashboard-agent-listen-port={agent}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*there, "ray", "start", *options, f"--temp-dir={self._folder / name}", "--block"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
                start_new_session=True,
            )
        self._nodes[name] = process
        until = time.monotonic() + _START_S
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                lines = log.read_text(errors="replace").splitlines()
                return lines[-1] if lines else "it said nothing"
            time.sleep(_POLL_S)
        return None


@contextmanager
def local_cluster(env: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """A head, and nothing left of it or its nodes afterwards. env: as ``LocalCluster`` takes it."""
    with (
        network() as among,
        tempfile.TemporaryDirectory(prefix="md-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        cluster = LocalCluster(Path(folder), among, env)
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.close()


def bench_cluster(
    config: RunConfig, around_s: float, cpus: int, announce: Callable[[str], None]
) -> dict[str, Any]:
    """``train_through_changes`` on a cluster of a head without cores and a node for the learner.

    That node has a core more than the learner takes, for a rollout actor that stays.
    """
    with local_cluster() as cluster, tempfile.TemporaryDirectory(prefix="mario-dist-cluster-") as folder:
        cluster.add_node("learner", (config.learner.threads or 1) + 1, {"learner": 1})
        announce("the cluster is up")
        document = train_through_changes(cluster, config, Path(folder), around_s, cpus, announce)
    return {"machine": machine.describe(), **document}


def train_through_changes(
    cluster: LocalCluster,
    config: RunConfig,
    runs: Path,
    around_s: float,
    cpus: int,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Train as ``config`` says, without evaluations, on a cluster that loses a node and gets another.

    The training is a job. Both nodes have ``cpus`` cores. ``around_s`` seconds lie before, between and after;
    then the job is stopped.

    steps_per_s: with all actors, with those that were left, and again with all. recovered_s: from the death
    until the training made, over 3 s, 80 % of what those left had made of the speed before; NaN for never.
    joined_s: from the moment that a new node, whose own start took node_start_s, was there until a report by
    as many actors as before. episodes, exactly_once: as in ``bench_outage``.

    Raises ``UserError`` where a node does not start or the training fails.
    """
    config = dataclasses.replace(
        endless(config),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=ENDLESS),
    )
    cluster.add_node("rollouts", cpus)
    with (
        submitted(cluster, config, runs, "changes") as training,
        RunStore(f"sqlite:///{runs}/mario.db") as store,
    ):
        run = training.wait_for(lambda: reporting(store))

        def newest(name: str) -> int:
            values = [row["value"] for row in store.newest_metrics(run.id) if row["name"] == name]
            return int(values[0]) if values else 0

        training.wait_for(lambda: newest("rollout_actors") > cpus or None)
        actors = newest("rollout_actors")
        announce(f"training with {actors} rollout actors")
        began = wall_s_now(run)
        training.go_on(around_s)
        killed = wall_s_now(run)
        cluster.kill_node("rollouts")
        announce("a node was killed")
        training.go_on(around_s)
        ordered = wall_s_now(run)
        cluster.add_node("successor", cpus)
        added = wall_s_now(run)
        training.wait_for(lambda: newest("rollout_actors") >= actors or None)
        joined = wall_s_now(run)
        announce(f"its successor's actors joined after {joined - added:.1f} s")
        training.go_on(around_s)
        end = wall_s_now(run)
        training.stop()
        reports = store.metrics(run.id, ["episodes"])
        last = load_checkpoint(list_checkpoints(runs / run.id / "checkpoints")[0])
        episodes = count_episodes(store.episodes(run.id), last.meta["counters"]["episodes"])
        lost_unrolls = newest("lost_unrolls")
    (before,) = speeds_between(reports, (began, killed))
    (left,) = speeds_between(reports, (killed + 0.5 * around_s, ordered))
    (after,) = speeds_between(reports, (joined, end))
    share = before * (actors - cpus) / actors
    once = episodes["counted"] == episodes["stored"] == episodes["distinct"] and not episodes["holes"]
    return {
        "actors": {"before": actors, "lost": cpus},
        "steps_per_s": {"before": before, "left": left, "after": after},
        "recovered_s": _recovered_s(reports, killed, ordered, share),
        "node_start_s": added - ordered,
        "joined_s": joined - added,
        "lost_unrolls": lost_unrolls,
        "episodes": episodes,
        "exactly_once": once,
    }


@contextmanager
def submitted(
    cluster: LocalCluster, config: RunConfig, runs: Path, run_id: str, env: Mapping[str, str] | None = None
) -> Iterator[Training]:
    """A training as a job of ``cluster``, followed by `mario-dist submit`, which ends with the block.

    env: for the job, beside the places of its run.
    """
    work = runs / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.yaml").write_text(configuration.dump(config))
    here = {
        "MARIO_DIST_RUNS": str(runs),
        "MARIO_DIST_DB": f"sqlite:///{runs}/mario.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs}/mlflow.db",
        **(env or {}),
    }
    words = ["submit", "config.yaml", f"--run-id={run_id}", f"--address={cluster.url}"]
    words += [f"--env={name}={value}" for name, value in here.items()]
    training = launch(words, runs / "log", cluster.env, cwd=work)
    try:
        yield training
    finally:
        training.kill()


def _recovered_s(reports: Sequence[MetricRow], killed: float, until: float, share: float) -> float:
    """Seconds from a death to the first window with enough of ``share``; NaN for never."""
    for start in np.arange(killed, until - _WINDOW_S, 0.1):
        if speeds_between(reports, (start, start + _WINDOW_S))[0] >= _ENOUGH * share:
            return float(start - killed)
    return float("nan")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _own_address() -> str:
    """The address by which Ray knows this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
