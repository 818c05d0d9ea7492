"""A real Ray cluster on this machine: jobs with a token, nodes that go and come, runs that outlive both."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.s3 import s3_server

from mario_dist.bench.cluster import LocalCluster, local_cluster, submitted, train_through_changes
from mario_dist.checkpoint import has_replay, list_checkpoints, load_checkpoint
from mario_dist.cli.config import read_config
from mario_dist.config import RunConfig
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore

ROOT = Path(__file__).parents[2]
Make = Callable[..., RunConfig]
pytestmark = [pytest.mark.timeout(600), pytest.mark.alone]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without cores, and a node for the learner with room for a rollout actor beside it."""
    with local_cluster() as started:
        started.add_node("learner", 2, {"learner": 1})
        yield started


def test_a_node_is_killed_and_another_joins_in_mid_run(cluster: LocalCluster, tmp_path: Path) -> None:
    small = ["rollout.lanes=4", "rollout.unroll_length=32", "learner.threads=1"]
    config = read_config([str(ROOT / "configs" / "impala-1-1.yaml"), *small])
    seen = train_through_changes(cluster, config, tmp_path, 12.0, 1, print)
    assert seen["actors"] == {"before": 2, "lost": 1}
    # How fast is for `bench cluster` to say, on a machine that does nothing else.
    assert seen["steps_per_s"]["left"] > 0.0
    assert seen["exactly_once"], seen["episodes"]
    assert seen["episodes"]["stored"] > 0
    said = (tmp_path / "log").read_text()
    assert "note: 1 rollout actor(s) died; others take their place" in said
    assert "changes was asked to stop: it writes a checkpoint first" in said
    assert said.rstrip().endswith("changes: stopped; the same command with --run-id changes goes on")
    assert " INFO " not in said.partition("job changes on")[0], "Ray's own messages are left out"
    cluster.kill_node("successor")


def test_without_the_token_nothing_is_run(cluster: LocalCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mario_dist.cli.main", "submit", f"--address={cluster.url}"]
    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        env = {**cluster.env, **token, "HOME": str(tmp_path)}
        said = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert said.returncode == 1
        assert f"error: {cluster.url} wants a token: set RAY_AUTH_MODE=token" in said.stderr
        assert said.stderr.count("\n") == 1


def test_a_run_whose_driver_was_killed_goes_on_when_it_is_submitted_again(
    cluster: LocalCluster, tmp_path: Path, apex_config: Make
) -> None:
    """By Ape-X, whose replay lies on the learner's node; its checkpoints are in an S3."""
    with s3_server() as s3:
        env = {**s3.env, "MARIO_DIST_STORAGE": s3.url, "MLFLOW_TRACKING_URI": default_tracking_uri()}
        config = apex_config(
            total_steps=10**8,
            system={"driver": "auto"},
            rollout={"actors": 2, "lanes": 4, "unroll_length": 16},
            replay={"capacity": 2048, "min_size": 256, "samples_per_insert": 2.0, "checkpoint": True},
            checkpoint={"every_steps": 1024},
        )
        with submitted(cluster, config, tmp_path / "a", "again", env) as training:
            training.wait_for(lambda: any(key.endswith("manifest.json") for key in s3.names()))
            # Head and learner's node are told apart by what they have; the driver is on the head.
            assert (
                homes(cluster, "ReplayLearnerActor") == homes(cluster, "ShardActor") == [{"learner", "CPU"}]
            )
            assert all("CPU" in resources for resources in homes(cluster, "RolloutActor"))
            scraped = training.wait_for(lambda: metrics(cluster, "again"))
            assert scraped["ray_mario_agent_steps_total"] > 0.0
            assert scraped["ray_mario_rollout_actors"] >= 1.0
            assert scraped["ray_mario_replay_size"] > 0.0
            driver = driver_of("again")
            driver.send_signal(signal.SIGKILL)
            driver.wait(30)
            assert training.ended(60) == 1
        kept = max(int(key.split("step-")[1].split("/")[0]) for key in s3.names() if "manifest" in key)
        shutil.rmtree(tmp_path / "a" / "again")
        more = {**env, "MARIO_DIST_DB": f"sqlite:///{tmp_path}/b/mario.db"}
        config = dataclasses.replace(config, total_steps=kept + 1024)
        with submitted(cluster, config, tmp_path / "b", "again", more) as training:
            assert training.ended(200) == 0
        said = (tmp_path / "b" / "log").read_text()
        assert "again is job again-try2" in said
        assert "again goes on" in said
        assert "no replay to go on with" not in said
        newest, *_ = list_checkpoints(tmp_path / "b" / "again" / "checkpoints")
        assert load_checkpoint(newest).meta["counters"]["agent_steps"] >= kept + 1024
        assert has_replay(newest)
        with RunStore(f"sqlite:///{tmp_path}/b/mario.db") as store:
            rows = store.episodes("again")
        assert min(row["agent_steps"] for row in rows) > kept
        assert {row["incarnation"] for row in rows} == {1}


def driver_of(run_id: str) -> psutil.Process:
    """The process on the head that conducts a run."""
    (driver,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "train" in (words := process.info["cmdline"] or []) and run_id in words
        if "mario-dist" in " ".join(words[:2]) and words[0] != "/bin/sh"
    ]
    return driver


def homes(cluster: LocalCluster, kind: str) -> list[set[str]]:
    """What the nodes have, of CPU and learner, on which the living actors of a class run."""

    def listed(what: str) -> list[dict[str, Any]]:
        token = {"Authorization": f"Bearer {cluster.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{cluster.url}/api/v0/{what}?limit=1000&detail=true", headers=token)
        found: list[dict[str, Any]] = json.load(urllib.request.urlopen(request, timeout=30))["data"][
            "result"
        ]["result"]
        return found

    has = {node["node_id"]: {"CPU", "learner"} & node["resources_total"].keys() for node in listed("nodes")}
    alive = [actor for actor in listed("actors") if actor["class_name"] == kind and actor["state"] == "ALIVE"]
    assert alive
    return [has[actor["node_id"]] for actor in alive]


def metrics(cluster: LocalCluster, run_id: str) -> dict[str, float] | None:
    """What Prometheus would get of a run from the head, once it is there."""
    text = urllib.request.urlopen(cluster.metrics_url, timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_mario_") and f'"{run_id}"' in line]
    found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    # They come in several lots.
    return found if {"ray_mario_replay_size", "ray_mario_agent_steps_total"} <= found.keys() else None
