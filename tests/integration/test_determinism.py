"""One seed, one machine, one process: the same run to the bit, however often it is stopped on the way."""

import dataclasses
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training import go

from mario_dist.checkpoint import TrainState, list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.store import RunStore
from mario_dist.system.run import RunResult
from mario_dist.system.stop import StopRequest

Make = Callable[..., RunConfig]
STOPS = 5
ASKS = 64
"""How often a run of 2,048 steps, 32 an iteration, is asked whether it shall stop."""


@pytest.fixture(params=["ppo", "impala", "apex"])
def config(
    request: pytest.FixtureRequest, probe_config: Make, impala_config: Make, apex_config: Make
) -> RunConfig:
    make = {"ppo": probe_config, "impala": impala_config, "apex": apex_config}[request.param]
    small: dict[str, Any] = {
        "total_steps": 2048,
        "rollout": {"actors": 2, "lanes": 2, "unroll_length": 8},
        "checkpoint": {"every_steps": 100_000},
        "env": {"sticky": 0.2},
    }
    if request.param == "ppo":
        small["algo"] = {"minibatch": 16}
    if request.param == "apex":
        small["replay"] = {"shards": 2, "min_size": 256, "checkpoint": True, "compression": "lz4"}
    return make(**small)


def newest(result: RunResult) -> Path:
    return list_checkpoints(result.directory / "checkpoints")[0]


def arrays(result: RunResult) -> TrainState:
    return load_checkpoint(newest(result))


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, ask: int) -> Iterator[None]:
    """Ctrl-C, by a real signal, when the run asks for the n-th time whether it shall stop."""
    asked = 0

    class Watched(StopRequest):
        def __call__(self) -> bool:
            nonlocal asked
            asked += 1
            if asked == ask:
                os.kill(os.getpid(), signal.SIGINT)
            return self.requested

    with monkeypatch.context() as patch:
        patch.setattr("mario_dist.system.stop.StopRequest", Watched)
        yield


def episodes(runs: Path, run_id: str) -> list[dict[str, Any]]:
    with RunStore(f"sqlite:///{runs}/mario.db") as store:
        rows = store.episodes(run_id)
    return [{k: v for k, v in row.items() if k not in ("seconds", "incarnation", "sequence")} for row in rows]


def test_five_stops_at_random_points_change_not_a_bit(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = go(config, tmp_path / "whole"), go(config, tmp_path / "again")
    points = sorted(random.Random(config.algo.name).sample(range(2, ASKS), STOPS))
    checkpoint = None
    done = 0
    for point in points:
        with interrupted(monkeypatch, point - done):
            part = go(config, tmp_path / "stopped", checkpoint)
        assert part.outcome == "stopped"
        done, checkpoint = part.agent_steps // 32, newest(part)
    last = go(config, tmp_path / "stopped", checkpoint)
    assert last.outcome == "finished"
    expected = arrays(whole)
    assert any(name.startswith("learner.network.") for name in expected.arrays)
    for result in (again, last):
        found = arrays(result)
        assert found.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    rows = episodes(tmp_path / "whole", whole.run_id)
    assert len(rows) > 20
    assert episodes(tmp_path / "again", again.run_id) == rows
    assert episodes(tmp_path / "stopped", last.run_id) == rows
    other = go(dataclasses.replace(config, seed=1), tmp_path / "other")
    weights = [name for name in expected.arrays if "weight" in name]
    assert any((arrays(other).arrays[name] != expected.arrays[name]).any() for name in weights)
