"""Shared by all tests: small configurations, and a place for runs that is not the user's."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Result

from mario_dist.cli.main import main
from mario_dist.config import RunConfig, parse

# As mario_dist.system.ray sets it before it imports Ray: a test that imports Ray first would, under
# `uv run pytest`, have every worker started by uv on an upload of the working directory.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# On tensors as small as the tests', more threads only wait for each other.
torch.set_num_threads(1)

PROBE: dict[str, Any] = {
    "name": "probe",
    "total_steps": 512,
    "env": {"kind": "probe", "frame_size": [12, 12], "frame_stack": 2, "max_steps": 60},
    "network": {"torso": "mlp", "hidden": 32},
    "algo": {"epochs": 2, "minibatch": 64, "gamma": 0.9},
    "rollout": {"actors": 1, "lanes": 4, "unroll_length": 16},
    "learner": {"device": "cpu", "threads": 1, "precision": "float32"},
    "system": {"driver": "local"},
    "checkpoint": {"every_steps": 128},
    "evaluation": {"every_steps": 0},
}


APEX: dict[str, Any] = {
    **PROBE,
    "algo": {
        "name": "apex",
        "batch": 32,
        "lr": [1e-3, 1e-3],
        "target_every": 20,
        "publish_every": 4,
        "gamma": 0.9,
    },
    "replay": {"capacity": 512, "min_size": 128, "samples_per_insert": 2.0},
}


IMPALA: dict[str, Any] = {
    **PROBE,
    "algo": {
        "name": "impala",
        "gamma": 0.9,
        "optimiser": "adam",
        "optimiser_eps": 1e-5,
        "lr": [1e-3, 1e-3],
        "max_grad_norm": 0.5,
    },
}


@pytest.fixture
def probe_config() -> Callable[..., RunConfig]:
    """A quick run of PPO on the probe environment; keyword arguments replace whole groups' keys."""
    return partial(_changed, PROBE)


@pytest.fixture
def apex_config() -> Callable[..., RunConfig]:
    """The same by Ape-X."""
    return partial(_changed, APEX)


@pytest.fixture
def impala_config() -> Callable[..., RunConfig]:
    """The same by IMPALA."""
    return partial(_changed, IMPALA)


def _changed(base: dict[str, Any], **groups: Any) -> RunConfig:
    tree: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
    for name, value in groups.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return parse(tree)


@pytest.fixture(scope="session")
def ray_lock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], AbstractContextManager[None]]:
    """Shared by who starts Ray, exclusive for who would find a Ray that another test started."""
    # What the workers of one test run share is the parent of their own folders.
    path = tmp_path_factory.getbasetemp().parent / "ray.lock"

    @contextmanager
    def lock(kind: int) -> Iterator[None]:
        with path.open("w") as file:
            fcntl.flock(file, kind)
            yield

    return lock


@pytest.fixture
def beside_other_rays(ray_lock: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    with ray_lock(fcntl.LOCK_SH):
        yield


@pytest.fixture
def without_other_rays(ray_lock: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    with ray_lock(fcntl.LOCK_EX):
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process, for what would only pay for imports in another."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["mario-dist", *arguments])
        monkeypatch.chdir(Path(__file__).parents[1])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        code = exit.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow for all tests of a worker: to make one takes MLflow as long as a whole small run does."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own runs and run store."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("MARIO_DIST_RUNS", str(runs))
    monkeypatch.delenv("MARIO_DIST_DB", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)  # MLflow sets it where a test used the registry
    return runs
