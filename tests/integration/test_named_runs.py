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
    assert "is damaged: arrays.safetensors is not what was written; trying the one before it" in mended.stderr
    assert "finished: mine at 384 agent steps" in mended.stdout
    assert load_checkpoint(newest).meta["counters"]["agent_steps"] == 384
    assert load_checkpoint(before).meta["counters"]["agent_steps"] == 256


def test_one_that_never_came_to_a_checkpoint_begins_anew(tmp_path: Path, probe_config: Make) -> None:
    never = probe_config(total_steps=10**8, checkpoint={"every_steps": 10**8})
    first = start(never, tmp_path / "here", {})
    until = time.monotonic() + PATIENCE_S
    database = tmp_path / "here" / "mario.db"
    while not (database.exists() and episodes(database)):
        assert first.poll() is None, (tmp_path / "here" / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = start(probe_config(total_steps=256), tmp_path / "here", {})
    assert again.wait(PATIENCE_S) == 0, (tmp_path / "here" / "log").read_text()
    (newest, *_) = list_checkpoints(tmp_path / "here" / "runs" / "first" / "checkpoints")
    found = episodes(database)
    assert set(found.values()) == {1}
    assert load_checkpoint(newest).meta["counters"]["episodes"] == len(found)


def episodes(database: Path) -> Counter[tuple[int, int, int]]:
    with RunStore(f"sqlite:///{database}") as store:
        if store.find_run("first") is None:
            return Counter()
        return Counter((r["actor"], r["incarnation"], r["sequence"]) for r in store.episodes("first"))


def test_a_run_whose_checkpoints_are_elsewhere_is_not_begun_anew(
    here: Callable[..., Result], config: Path, own_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here("train", str(config), "--run-id", "mine").returncode == 0
    with RunStore(default_url()) as store:
        before = store.episodes("mine")
    monkeypatch.setenv("MARIO_DIST_DB", default_url())
    monkeypatch.setenv("MARIO_DIST_RUNS", str(tmp_path / "elsewhere"))
    said = here("train", str(config), "--run-id", "mine")
    assert said.returncode == 1
    assert "mine has checkpoints that are not here, in" in said.stderr
    assert str(own_runs) in said.stderr
    with RunStore(default_url()) as store:
        assert store.episodes("mine") == before


def test_no_checkpoint_that_can_be_read_is_no_reason_to_begin_anew(
    here: Callable[..., Result], config: Path, own_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_STORAGE", f"file://{tmp_path}/shared")
    assert here("train", str(config), "--run-id", "mine").returncode == 0
    checkpoints = list_checkpoints(own_runs / "mine" / "checkpoints")
    for path in checkpoints:
        (path / "arrays.safetensors").write_bytes(b"damaged")
    # What storage has takes the place of what is damaged here.
    assert "finished: mine at 384" in here("train", str(config), "--run-id", "mine", "total_steps=384").stdout
    monkeypatch.delenv("MARIO_DIST_STORAGE")
    for path in list_checkpoints(own_runs / "mine" / "checkpoints"):
        (path / "arrays.safetensors").write_bytes(b"damaged")
    said = here("train", str(config), "--run-id", "mine", "total_steps=512")
    assert said.returncode == 1
    assert "mine has no checkpoint that can be used" in said.stderr


def test_who_comes_back_finds_what_another_machine_did_meanwhile(
    here: Callable[..., Result], config: Path, own_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARIO_DIST_STORAGE", f"file://{tmp_path}/shared")
    monkeypatch.setenv("MARIO_DIST_DB", f"sqlite:///{tmp_path}/shared.db")
    assert here("train", str(config), "--run-id", "mine").returncode == 0
    monkeypatch.setenv("MARIO_DIST_RUNS", str(tmp_path / "b"))
    assert here("train", str(config), "--run-id", "mine", "total_steps=512").returncode == 0
    monkeypatch.setenv("MARIO_DIST_RUNS", str(own_runs))
    back = here("train", "--resume", "mine", "total_steps=640")
    assert "finished: mine at 640" in back.stdout
    kept = {path.name for path in (tmp_path / "shared" / "mine" / "checkpoints").glob("step-*")}
    assert "step-000000000640" in kept
    assert "step-000000000512" in kept


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
