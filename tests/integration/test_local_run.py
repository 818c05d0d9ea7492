"""Whole runs in one process: reproducible, resumable, and nothing of them lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mario_dist.checkpoint import TrainState, best_checkpoint, list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig, dump, override, parse, to_tree
from mario_dist.errors import UserError
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore
from mario_dist.system.run import RunResult, run_training
from mario_dist.zoo import half_precision

MARIO = parse(
    {
        "name": "mario",
        "total_steps": 384,
        "env": {"frame_size": [42, 42], "max_steps": 60, "sticky": 0.1},
        "network": {"hidden": 32},
        "algo": {"epochs": 2, "minibatch": 32},
        "rollout": {"lanes": 4, "unroll_length": 24, "threads": 2},
        "learner": {"device": "cpu", "threads": 1},
        "system": {"driver": "local"},
        "checkpoint": {"every_steps": 192},
        "evaluation": {"every_steps": 0},
    }
)


def go(
    config: RunConfig, runs: Path, resume: TrainState | None = None, init: TrainState | None = None
) -> RunResult:
    runs.mkdir(exist_ok=True)
    return run_training(
        config,
        runs,
        store_url=f"sqlite:///{runs}/mario.db",
        tracking_uri=default_tracking_uri(),
        resume=resume,
        init=init,
    )


def newest(result: RunResult) -> TrainState:
    return load_checkpoint(list_checkpoints(result.directory / "checkpoints")[0])


def assert_same_arrays(a: TrainState, b: TrainState) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name], err_msg=name)


# On the probe, by every algorithm and with many stops: test_determinism.py.
def test_interrupted_at_half_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = go(MARIO, tmp_path / "whole")
    # The whole run's own checkpoint at half is the moment at which a kill -9 would have left it.
    half_path = list_checkpoints(whole.directory / "checkpoints")[-1]
    half = load_checkpoint(half_path)
    assert 0 < half.meta["counters"]["agent_steps"] < MARIO.total_steps
    expected = newest(whole)
    assert half_path != list_checkpoints(whole.directory / "checkpoints")[0]
    with RunStore(f"sqlite:///{tmp_path}/whole/mario.db") as store:
        rows_expected = store.episodes(whole.run_id)

    again = go(MARIO, tmp_path / "whole", resume=half)
    assert again.run_id == whole.run_id
    # What the first branch had saved after that moment is set aside, and the new one's is kept.
    assert list((whole.directory / "checkpoints").glob("abandoned-step-*"))
    assert_same_arrays(newest(again), expected)
    with RunStore(f"sqlite:///{tmp_path}/whole/mario.db") as store:
        rows = store.episodes(again.run_id)
        assert len(store.list_runs()) == 1

    def what(row: dict[str, object]) -> dict[str, object]:
        return {k: v for k, v in row.items() if k not in ("seconds", "incarnation")}

    assert [what(dict(r)) for r in rows] == [what(dict(r)) for r in rows_expected]


def test_every_episode_of_every_lane_of_every_actor_is_in_the_store_once(
    tmp_path: Path, probe_config: Callable[..., RunConfig]
) -> None:
    config = probe_config(rollout={"actors": 3, "lanes": 5}, total_steps=3 * 5 * 16 * 8)
    result = go(config, tmp_path / "runs")
    state = newest(result)
    with RunStore(f"sqlite:///{tmp_path}/runs/mario.db") as store:
        rows = store.episodes(result.run_id)
    keys = Counter((r["actor"], r["incarnation"], r["sequence"]) for r in rows)
    assert set(keys.values()) == {1}
    assert {(r["actor"], r["lane"]) for r in rows} == {(a, n) for a in range(3) for n in range(5)}
    # Each worker counts its ended episodes itself, and the steps of all episodes must add up to the
    # run's but for the episodes under way at the end.
    for actor in range(3):
        ended = int(state.arrays[f"worker.{actor}.counts"][1])
        assert sorted(r["sequence"] for r in rows if r["actor"] == actor) == list(range(ended))
        for lane in range(5):
            steps = sum(r["length"] for r in rows if (r["actor"], r["lane"]) == (actor, lane))
            running = int(state.arrays[f"worker.{actor}.env.clock.length"][lane])
            assert steps + running == 16 * 8


def test_store_mlflow_and_files_agree_with_the_run(
    tmp_path: Path, probe_config: Callable[..., RunConfig]
) -> None:
    import mlflow

    runs = tmp_path / "runs"
    result = go(probe_config(evaluation={"every_steps": 256, "episodes": 3}), runs)
    with RunStore(f"sqlite:///{runs}/mario.db") as store:
        run = store.get_run("latest")
        losses = store.metrics(run.id, ["policy_loss"])
        checkpoints = store.checkpoints(run.id)
    assert (run.id, run.status, run.agent_steps) == (result.run_id, "finished", 512)
    assert [row["agent_steps"] for row in losses] == list(range(64, 513, 64))
    assert checkpoints[-1].kind == "final"
    assert checkpoints[-1].evaluation is not None
    assert (result.directory / "config.yaml").is_file()

    client = mlflow.MlflowClient(default_tracking_uri())
    assert run.mlflow_run_id is not None
    tracked = client.get_run(run.mlflow_run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["algo.gamma"] == "0.9"
    history = client.get_metric_history(run.mlflow_run_id, "policy_loss")
    assert sorted(m.step for m in history) == list(range(64, 513, 64))
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == [row["value"] for row in losses]
    kept = {f.path for f in client.list_artifacts(run.mlflow_run_id, "checkpoints")}
    assert kept == {"checkpoints/best", "checkpoints/final"}


def start(config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    """`mario-dist train` in a process of its own."""
    path = folder / "config.yaml"
    path.write_text(dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "mario_dist.cli.main", "train", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_checkpoint(runs: Path, child: subprocess.Popen[str], count: int = 1) -> Path:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        found = sorted(runs.glob("*/checkpoints/step-*/manifest.json"))
        if len(found) >= count:
            return found[0].parents[2]
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    raise AssertionError("no checkpoint within 150 s")


ENDLESS = {"total_steps": 10**9, "checkpoint": {"every_steps": 256, "keep": 3}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_with_a_final_checkpoint(
    number: signal.Signals, own_runs: Path, tmp_path: Path, probe_config: Callable[..., RunConfig]
) -> None:
    child = start(probe_config(**ENDLESS), tmp_path)
    directory = wait_for_checkpoint(own_runs, child)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    result = json.loads(out)
    assert result["outcome"] == "stopped"
    state = load_checkpoint(list_checkpoints(directory / "checkpoints")[0])
    assert state.meta["counters"]["agent_steps"] == result["agent_steps"]
    with RunStore(f"sqlite:///{own_runs}/mario.db") as store:
        run = store.get_run(directory.name)
        assert (run.status, run.agent_steps) == ("stopped", result["agent_steps"])
        assert len(store.episodes(run.id)) == state.meta["counters"]["episodes"]


def test_kill_9_loses_at_most_what_came_after_the_last_checkpoint(
    own_runs: Path, tmp_path: Path, probe_config: Callable[..., RunConfig]
) -> None:
    child = start(probe_config(**ENDLESS), tmp_path)
    directory = wait_for_checkpoint(own_runs, child, count=3)
    time.sleep(0.1)
    child.kill()
    child.communicate()
    paths = list_checkpoints(directory / "checkpoints")
    state = load_checkpoint(paths[0])
    steps = state.meta["counters"]["agent_steps"]
    config = probe_config(**ENDLESS | {"total_steps": steps + 512})
    resumed = run_training(
        config,
        own_runs,
        store_url=f"sqlite:///{own_runs}/mario.db",
        tracking_uri=default_tracking_uri(),
        resume=state,
    )
    assert resumed.run_id == directory.name
    assert resumed.agent_steps == steps + 512
    final = load_checkpoint(list_checkpoints(directory / "checkpoints")[0])
    with RunStore(f"sqlite:///{own_runs}/mario.db") as store:
        rows = store.episodes(resumed.run_id)
        assert store.get_run(resumed.run_id).status == "finished"
    keys = Counter((r["actor"], r["incarnation"], r["sequence"]) for r in rows)
    assert set(keys.values()) == {1}
    assert len(rows) == final.meta["counters"]["episodes"]
    assert sum(r["length"] for r in rows) <= resumed.agent_steps


def test_a_run_that_reached_its_goal_is_finished_and_keeps_what_reached_it(
    tmp_path: Path, probe_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = probe_config(
        seed=1,
        total_steps=60_000,
        algo={"lr": [3e-3, 3e-3], "epochs": 4},
        rollout={"lanes": 8, "unroll_length": 32},
        checkpoint={"every_steps": 10_000},
        evaluation={"every_steps": 512, "episodes": 5},
        stop={"clear_rate": 0.95, "episodes": 40},
    )
    result = go(config, tmp_path / "runs")
    assert (result.outcome, result.best is not None) == ("finished", True)
    assert result.agent_steps < 60_000
    best, last = best_checkpoint(result.directory / "checkpoints"), newest(result)
    assert best is not None
    assert load_checkpoint(best).meta["counters"] == last.meta["counters"]
    evaluation = last.meta["evaluation"]
    assert (evaluation["episodes"], evaluation["protocol"]["seed"]) == (40, config.stop.seed)
    assert evaluation["clear_rate"] >= 0.95
    with RunStore(f"sqlite:///{tmp_path}/runs/mario.db") as store:
        row = store.get_run(result.run_id)
        told = {m["name"]: m["value"] for m in store.metrics(result.run_id, ["stop/clear_rate"])}
    assert (row.status, row.agent_steps) == ("finished", result.agent_steps)
    assert told["stop/clear_rate"] == evaluation["clear_rate"]
    said = capsys.readouterr().err
    assert "that was jitter-30, of which 95% is to be cleared: the run ends with this checkpoint" in said


@pytest.mark.parametrize("algo", ["ppo", "apex"])
def test_a_run_may_begin_with_anothers_network(
    algo: str,
    tmp_path: Path,
    probe_config: Callable[..., RunConfig],
    apex_config: Callable[..., RunConfig],
) -> None:
    config = {"ppo": probe_config, "apex": apex_config}[algo]()
    first = newest(go(config, tmp_path / "runs"))
    still = override(to_tree(config), ["algo.lr=[0, 0]", "seed=9"])
    second = newest(go(still, tmp_path / "runs", init=half_precision(first)))
    own = newest(go(still, tmp_path / "runs"))
    assert second.meta["run_id"] != first.meta["run_id"]
    for name in [name for name in first.arrays if name.startswith("learner.network.")]:
        assert second.arrays[name].dtype == np.float32
        np.testing.assert_allclose(second.arrays[name], first.arrays[name], atol=1e-3)
        if algo == "apex":
            target = name.replace("network", "target")
            np.testing.assert_array_equal(second.arrays[target], second.arrays[name])
    assert any((own.arrays[name] != second.arrays[name]).any() for name in own.arrays if "network" in name)
    assert second.meta["counters"]["agent_steps"] == config.total_steps


def test_a_network_that_does_not_fit_is_refused_before_anything_is_there(
    tmp_path: Path, probe_config: Callable[..., RunConfig]
) -> None:
    first = newest(go(probe_config(), tmp_path / "runs"))
    other = probe_config(network={"torso": "mlp", "hidden": 16})
    with pytest.raises(UserError, match="does not fit this configuration"):
        go(other, tmp_path / "others", init=first)
    assert not list((tmp_path / "others").iterdir())
