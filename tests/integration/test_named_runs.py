"""Runs by name: begun, gone on with and left alone by the same command, with their checkpoints in an S3."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.commands import Result
from support.s3 import S3, s3_server

from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig, dump
from mario_dist.store import RunStore, default_url

Make = Callable[..., RunConfig]

PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def start(config: RunConfig, machine: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`mario-dist train --run-id first` on a machine whose disk is the folder."""
    machine.mkdir(exist_ok=True)
    (machine / "config.yaml").write_text(dump(config))
    with (machine / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mario_dist.cli.main", "train", "config.yaml", "--run-id", "first"],
            cwd=machine,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                **env,
                "MARIO_DIST_RUNS": str(machine / "runs"),
                "MARIO_DIST_DB": f"sqlite:///{machine}/mario.db",
                "MLFLOW_TRACKING_URI": f"sqlite:///{machine}/mlflow.db",
            },
        )


def test_another_machine_goes_on_with_a_run_whose_own_is_gone(
    s3: S3, tmp_path: Path, probe_config: Make
) -> None:
    env = {**s3.env, "MARIO_DIST_STORAGE": s3.url}
    endless = probe_config(total_steps=10**8, checkpoint={"every_steps": 256})
    first = start(endless, tmp_path / "first", env)
    until = time.monotonic() + PATIENCE_S
    while sum(key.endswith("/manifest.json") for key in s3.names()) < 2:
        assert first.poll() is None, (tmp_path / "first" / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = max(int(key.split("step-")[1].split("/")[0]) for key in s3.names() if "manifest" in key)
    shutil.rmtree(tmp_path / "first")
    second = start(probe_config(total_steps=kept + 512), tmp_path / "second", env)
    assert second.wait(PATIENCE_S) == 0, (tmp_path / "second" / "log").read_text()
    said = (tmp_path / "second" / "log").read_text()
    assert "first goes on" in said
    assert "did not know first: its episodes and metrics begin here" in said
    directory = tmp_path / "second" / "runs" / "first"
    newest, *_ = list_checkpoints(directory / "checkpoints")
    meta = load_checkpoint(newest).meta
    assert meta["counters"]["agent_steps"] == kept + 512
    assert meta["incarnation"] == 1
    with RunStore(f"sqlite:///{tmp_path}/second/mario.db") as store:
        rows = store.episodes("first")
        assert store.get_run("first").status == "finished"
    assert {row["incarnation"] for row in rows} == {1}
    assert min(row["agent_steps"] for row in rows) > kept
    assert not any(key.endswith("owner.json") for key in s3.names())
    # A third time there is nothing to do, on a third machine as well.
    third = start(probe_config(total_steps=kept + 512), tmp_path / "third", env)
    assert third.wait(PATIENCE_S) == 0
    assert "first is finished: nothing to do" in (tmp_path / "third" / "log").read_text()


@pytest.fixture
def config(tmp_path: Path, probe_config: Make) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump(probe_config(total_steps=256)))
    return path


def test_a_name_begins_goes_on_and_is_done(here: Callable[..., Result], config: Path, own_runs: Path) -> None:
    def train(*more: str) -> Result:
        return here("train", str(config), "--run-id", "mine", *more)

    assert "finished: mine at 256 agent steps" in train().stdout
    again = train("--json")
    assert "mine is finished: nothing to do" in again.stderr
    assert json.loads(again.stdout)["agent_steps"] == 256
    more = train("total_steps=384")
    assert "mine goes on" in more.stderr
    assert "finished: mine at 384 agent steps" in more.stdout
    # A newest checkpoint that is damaged is left out, and what it had is done again.
    newest, before, *_ = list_checkpoints(own_runs / "mine" / "checkpoints")
    with (newest / "arrays.safetensors").open("r+b") as file:
        file.write(b"damaged")
    mended = train("total_steps=384")
    assert "is damaged: arrays.safetensors is not what was written; going on from" in mended.stderr
    assert "finished: mine at 384 agent steps" in mended.stdout
    assert load_checkpoint(newest).meta["counters"]["agent_steps"] == 384
    assert load_checkpoint(before).meta["counters"]["agent_steps"] == 256


def test_one_that_never_came_to_a_checkpoint_begins_anew(
    here: Callable[..., Result], config: Path, own_runs: Path
) -> None:
    assert here("train", str(config), "--run-id", "mine").returncode == 0
    shutil.rmtree(own_runs / "mine" / "checkpoints")
    again = here("train", str(config), "--run-id", "mine")
    assert "finished: mine at 256 agent steps" in again.stdout
    with RunStore(default_url()) as store:
        keys = Counter((r["actor"], r["incarnation"], r["sequence"]) for r in store.episodes("mine"))
    assert set(keys.values()) == {1}
    (newest, *_) = list_checkpoints(own_runs / "mine" / "checkpoints")
    assert load_checkpoint(newest).meta["counters"]["episodes"] == len(keys)


@pytest.mark.parametrize("name", ["../up", "a b", "", "latest", "models", "x" * 101, "-x", "ünïcode"])
def test_what_is_no_name_is_one_line(
    name: str, here: Callable[..., Result], config: Path, own_runs: Path
) -> None:
    said = here("train", str(config), f"--run-id={name}")
    assert said.returncode == 1
    assert "is no run id: write up to 100 letters" in said.stderr
    assert not own_runs.exists()


def test_a_folder_of_something_else_is_left_alone(
    here: Callable[..., Result], config: Path, own_runs: Path
) -> None:
    (own_runs / "thesis").mkdir(parents=True)
    (own_runs / "thesis" / "chapter.txt").write_text("years of work")
    said = here("train", str(config), "--run-id", "thesis")
    assert said.returncode == 1
    assert "is there and no run's; choose another --run-id" in said.stderr
    assert (own_runs / "thesis" / "chapter.txt").read_text() == "years of work"


def test_other_machines_find_a_run_by_its_name(
    here: Callable[..., Result], config: Path, own_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_STORAGE", f"file://{tmp_path}/shared")
    monkeypatch.setenv("MARIO_DIST_DB", f"sqlite:///{tmp_path}/shared.db")
    assert here("train", str(config), "--run-id", "mine").returncode == 0
    monkeypatch.setenv("MARIO_DIST_RUNS", str(tmp_path / "elsewhere"))
    shutil.rmtree(own_runs)
    judged = here("eval", "mine", "--episodes", "2", "--json")
    assert json.loads(judged.stdout)["episodes"] == 2
    assert "finished: mine at 512" in here("train", "--resume", "mine", "total_steps=512").stdout
    monkeypatch.setenv("MARIO_DIST_STORAGE", f"file://{tmp_path}/shared.db/no")
    refused = here("train", str(config), "--run-id", "other")
    assert refused.returncode == 1
    assert "error: cannot use file://" in refused.stderr
