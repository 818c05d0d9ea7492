"""What a real training leaves in TensorBoard's event files and in Weights & Biases."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.training import go

from mario_dist.checkpoint import list_checkpoints
from mario_dist.config import RunConfig, dump
from mario_dist.errors import UserError
from mario_dist.store import RunStore

MakeConfig = Callable[..., RunConfig]


def test_tensorboard_has_every_metric_of_the_store_also_after_a_resume(
    probe_config: MakeConfig, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = go(probe_config(total_steps=256), tmp_path / "runs")
    oldest = list_checkpoints(result.directory / "checkpoints")[-1]
    again = go(probe_config(total_steps=384), tmp_path / "runs", oldest)
    assert again.directory == result.directory
    with RunStore(f"sqlite:///{tmp_path}/runs/mario.db") as store:
        rows = store.metrics(result.run_id)
    events = EventAccumulator(str(result.directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {row["name"] for row in rows}
    for name in ("entropy", "agent_steps_per_s"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in told] == [64, 128, 192, 256, 320, 384], "each step once"
        assert [value for _, value in told] == pytest.approx(
            [row["value"] for row in rows if row["name"] == name], rel=1e-6
        )


def test_without_tensorboard_there_are_no_event_files(probe_config: MakeConfig, tmp_path: Path) -> None:
    result = go(probe_config(total_steps=64, tracking={"tensorboard": False}), tmp_path / "runs")
    assert not (result.directory / "tensorboard").exists()


def test_wandb_gets_a_run_of_its_own(
    probe_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = go(probe_config(total_steps=128, tracking={"wandb_project": "mario"}), tmp_path / "runs")
    (log,) = (result.directory / "wandb").glob(f"offline-run-*/run-{result.run_id}.wandb")
    # wandb's own process may still be writing.
    deadline = time.monotonic() + 30
    while not all(name in log.read_bytes() for name in (b"agent_steps_per_s", b"entropy")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_wandb_that_refuses_leaves_no_run_behind(
    probe_config: MakeConfig, tmp_path: Path, own_runs: Path
) -> None:
    (tmp_path / "c.yaml").write_text(dump(probe_config(tracking={"wandb_project": "mario"})))
    # In a process of its own: wandb remembers how it was first started.
    done = subprocess.run(
        [sys.executable, "-m", "mario_dist.cli.main", "train", str(tmp_path / "c.yaml")],
        env=os.environ | {"WANDB_MODE": "online", "WANDB_API_KEY": "too short"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "wandb login" in done.stderr.splitlines()[-1]
    assert not list(own_runs.glob("probe-*"))
    with RunStore(f"sqlite:///{own_runs}/mario.db") as store:
        assert store.list_runs() == []


def test_wandb_that_is_not_installed_is_one_line_before_anything_is_made(
    probe_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(UserError, match="uv sync --extra wandb"):
        go(probe_config(tracking={"wandb_project": "mario"}), tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("probe-*"))
