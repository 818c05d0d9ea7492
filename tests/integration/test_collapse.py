"""A policy that really collapses: its learning rate rises until it forgets what it had learned."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.training import go

from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore
from mario_dist.system.run import RunResult

MakeConfig = Callable[..., RunConfig]


def collapsing(probe_config: MakeConfig, on_collapse: str) -> RunConfig:
    return probe_config(
        total_steps=8192,
        rollout={"lanes": 16, "unroll_length": 16},
        algo={"lr": [3e-3, 0.5], "minibatch": 128},
        checkpoint={"every_steps": 4096},
        evaluation={"every_steps": 4096, "episodes": 16},
        collapse={"on_collapse": on_collapse, "window": 50, "episodes": 20, "lr_factor": 1e-3},
    )


def alarms(result: RunResult) -> dict[str, int]:
    """Agent steps by the measure's name."""
    with RunStore(f"sqlite:///{result.directory.parent}/mario.db") as store:
        rows = store.metrics(result.run_id)
    return {row["name"]: row["agent_steps"] for row in rows if row["name"].startswith("alarm/")}


def test_a_collapse_is_told_on_the_screen_in_the_store_and_in_mlflow(
    probe_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = go(collapsing(probe_config, "stop"), tmp_path / "runs")
    assert result.outcome == "stopped", "as collapse.on_collapse says"
    told = alarms(result)
    assert told
    assert result.alarm is not None
    assert "has been under 50% of its best" in result.alarm
    assert 4096 < min(told.values()) <= result.agent_steps < 8192
    screen = capfd.readouterr().err
    assert "note: ALARM at" in screen
    best = next(p for p in list_checkpoints(result.directory / "checkpoints") if p.name.endswith("4096"))
    assert f"the best checkpoint is kept: {best}" in screen

    from mlflow import MlflowClient

    client = MlflowClient(default_tracking_uri())
    with RunStore(f"sqlite:///{tmp_path}/runs/mario.db") as store:
        run = client.get_run(str(store.get_run(result.run_id).mlflow_run_id))
    assert set(told) <= set(run.data.metrics)
    assert "has been under 50% of its best" in run.data.tags["mario_dist.alarm"]


def test_a_collapsed_run_goes_back_to_its_best_weights_and_learns_more_slowly(
    probe_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = go(collapsing(probe_config, "restore"), tmp_path / "runs")
    assert result.outcome == "finished"
    assert "back to the weights of" in capfd.readouterr().err
    with RunStore(f"sqlite:///{tmp_path}/runs/mario.db") as store:
        lr = {row["agent_steps"]: row["value"] for row in store.metrics(result.run_id, ["lr"])}
        x = [row["value"] for row in store.metrics(result.run_id, ["x_pos_mean"])]
    told = min(alarms(result).values())
    assert max(lr.values()) > 0.2
    assert max(value for steps, value in lr.items() if steps > told + 512) < 1e-3
    newest = load_checkpoint(list_checkpoints(result.directory / "checkpoints")[0])
    assert float(newest.arrays["learner.lr_scale"]) == 1e-3, "a resumed run goes on so"
    assert newest.meta["collapse_best"]["x_pos_mean"] > 15, "and measures by the best that there was"
    assert x[-1] > 10, "it plays again as it did"
    assert result.best is not None
    assert result.best[1] > 10
