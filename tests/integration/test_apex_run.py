"""Ape-X in one process: whole runs, resumed with their replay and without it."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training import go

from mario_dist.checkpoint import TrainState, checkpoint_replay, list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig, parse
from mario_dist.errors import UserError
from mario_dist.store import RunStore
from mario_dist.system.run import RunResult

Make = Callable[..., RunConfig]
MARIO: dict[str, Any] = {
    "name": "mario",
    "total_steps": 576,
    "env": {"frame_size": [42, 42], "max_steps": 40, "sticky": 0.1},
    "network": {"hidden": 32},
    "algo": {"name": "apex", "batch": 32, "lr": [1e-3, 1e-4], "target_every": 7, "publish_every": 3},
    "replay": {"capacity": 240, "min_size": 100, "samples_per_insert": 2.0},
    "rollout": {"lanes": 4, "unroll_length": 12, "threads": 2},
    "learner": {"device": "cpu", "threads": 1},
    "system": {"driver": "local"},
    "checkpoint": {"every_steps": 288},
    "evaluation": {"every_steps": 0},
}


def checkpoints(result: RunResult) -> list[Path]:
    return list_checkpoints(result.directory / "checkpoints")


def assert_same_arrays(a: TrainState, b: TrainState) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name], err_msg=name)


def keep_everything(config: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, replay=dataclasses.replace(config.replay, checkpoint=True, **changes))


def test_stopped_and_resumed_with_its_replay_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Stopped by a real signal, at whatever iteration it comes after the first checkpoint."""
    config = keep_everything(parse(MARIO))
    whole = go(config, tmp_path / "whole")

    runs = tmp_path / "stopped"

    def stop_after_a_checkpoint() -> None:
        while not list(runs.glob("*/checkpoints/step-*")):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop_after_a_checkpoint)
    thread.start()
    stopped = go(config, runs)
    thread.join()
    assert stopped.outcome == "stopped"
    assert stopped.agent_steps < whole.agent_steps
    resumed = go(config, runs, checkpoints(stopped)[0])
    assert resumed.run_id == stopped.run_id
    assert_same_arrays(load_checkpoint(checkpoints(whole)[0]), load_checkpoint(checkpoints(resumed)[0]))
    for name in ("priority", "reward", "before"):
        files = [
            next(c for c in checkpoints(r) if checkpoint_replay(c)) / f"replay/shard-0/{name}.npy"
            for r in (whole, resumed)
        ]
        np.testing.assert_array_equal(np.load(files[0]), np.load(files[1]))


def test_it_learns_only_when_filled_and_keeps_the_replay_ratio(tmp_path: Path, apex_config: Make) -> None:
    config = apex_config(total_steps=2048, evaluation={"every_steps": 1024, "episodes": 2})
    result = go(config, tmp_path)
    with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
        names = ["replay_size", "replay_ratio", "samples", "q_mean", "sample_age", "priority_spread"]
        rows = store.metrics(result.run_id, names)
        episodes = store.episodes(result.run_id)
        run = store.get_run(result.run_id)
    by_name: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append((row["agent_steps"], row["value"]))
    assert min(steps for steps, _ in by_name["q_mean"]) == 128
    assert by_name["replay_size"][-1][1] == 512
    assert by_name["replay_ratio"][-1][1] == pytest.approx(2.0, rel=0.05)
    assert all(0 < age <= 512 for _, age in by_name["sample_age"])
    assert all(spread >= 1.0 for _, spread in by_name["priority_spread"])
    assert len({(e["actor"], e["incarnation"], e["sequence"]) for e in episodes}) == len(episodes) > 0
    assert (run.status, run.algo, result.agent_steps) == ("finished", "apex", 2048)
    assert result.best is not None


def test_resumed_without_its_replay_it_fills_one_first_and_says_so(
    tmp_path: Path, apex_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = go(apex_config(), tmp_path)
    path = checkpoints(first)[0]
    assert checkpoint_replay(path) is None
    version = int(load_checkpoint(path).arrays["learner.version"])
    capsys.readouterr()
    go(apex_config(total_steps=1024), tmp_path, path)
    assert "no replay to go on with: 128 transitions come in before learning" in capsys.readouterr().err
    with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
        learned = [r["agent_steps"] for r in store.metrics(first.run_id, ["q_mean"])]
    assert version > 0
    assert min(steps for steps in learned if steps > 512) == 512 + 128


def test_only_the_newest_checkpoint_keeps_the_replay(tmp_path: Path, apex_config: Make) -> None:
    result = go(keep_everything(apex_config()), tmp_path)
    newest, *older = checkpoints(result)
    assert checkpoint_replay(newest) is not None
    assert older
    assert all(checkpoint_replay(path) is None for path in older)
    for path in older:
        load_checkpoint(path)


def test_a_damaged_replay_is_refused_by_name_and_another_shape_is_filled_anew(
    tmp_path: Path, apex_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = go(keep_everything(apex_config()), tmp_path)
    path = checkpoints(first)[0]
    more = keep_everything(apex_config(total_steps=640, replay={"capacity": 1024}))
    capsys.readouterr()
    go(more, tmp_path, path)
    assert "replay cannot be used here, it is filled anew" in capsys.readouterr().err
    path = next(p for p in checkpoints(first) if checkpoint_replay(p))
    file = path / "replay" / "shard-0" / "reward.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"replay/shard-0/reward.npy is not what was written; remove .*replay"
    ):
        go(dataclasses.replace(more, total_steps=1024), tmp_path, path)


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        ({"capacity": 100, "min_size": 50}, "is too small: each of 1 shard.* at least 128"),
        ({"capacity": 512, "min_size": 500}, "leaves no room for an unroll of each actor"),
        ({"shards": 2}, r"replay.shards=2 for 1 actor\(s\)"),
        ({"capacity": 10**12}, r"takes [\d,.]+ GiB, and [\d.]+ GiB are to spare; set replay.capacity=\d+"),
    ],
)
def test_a_replay_that_cannot_work_is_refused_before_the_run_exists(
    replay: dict[str, int], expected: str, tmp_path: Path, apex_config: Make
) -> None:
    with pytest.raises(UserError, match=expected):
        go(apex_config(replay=replay), tmp_path)
    assert not list(tmp_path.glob("probe-*"))


def test_unrolls_too_short_for_the_returns_are_refused_before_the_run_exists(
    tmp_path: Path, apex_config: Make
) -> None:
    with pytest.raises(UserError, match=r"shorter than algo.n_step or env.frame_stack; make it at least 17"):
        go(apex_config(algo={"n_step": 17}), tmp_path)
    assert not list(tmp_path.glob("probe-*"))


def test_learning_waits_for_two_unrolls_however_small_min_size_is(tmp_path: Path, apex_config: Make) -> None:
    result = go(apex_config(total_steps=256, replay={"min_size": 1}), tmp_path)
    with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
        learned = [r["agent_steps"] for r in store.metrics(result.run_id, ["q_mean"])]
    assert min(learned) == 128


@pytest.mark.parametrize(
    ("changes", "refilled"),
    [
        ({"algo": {"n_step": 2}}, True),
        ({"replay": {"compression": "lz4"}}, True),
        ({"env": {"max_steps": 30}}, True),
        ({"replay": {"samples_per_insert": 8.0}}, False),
    ],
)
def test_resumed_with_other_settings_it_goes_on_at_once_or_fills_anew(
    changes: dict[str, dict[str, Any]], refilled: bool, tmp_path: Path, apex_config: Make
) -> None:
    """A replay of another kind is left alone; one of the same is learned from, at the new ratio."""
    first = go(keep_everything(apex_config()), tmp_path)
    version = int(load_checkpoint(checkpoints(first)[0]).arrays["learner.version"])
    config = keep_everything(apex_config(total_steps=1024, **changes))
    go(config, tmp_path, checkpoints(first)[0])
    with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
        learned = [
            r["agent_steps"] for r in store.metrics(first.run_id, ["q_mean"]) if r["agent_steps"] > 512
        ]
    assert min(learned) == (512 + 128 if refilled else 512 + 64)
    updates = int(load_checkpoint(checkpoints(first)[0]).arrays["learner.version"]) - version
    inserted = 512 - (128 if refilled else 0)  # the last ones' updates are not all made
    assert updates == pytest.approx(inserted * config.replay.samples_per_insert / 32, abs=16)
