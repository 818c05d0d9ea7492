"""Whole runs on a Ray that the run itself starts."""

import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mario_dist.checkpoint import list_checkpoints, load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore
from mario_dist.system.run import RunResult, run_training

Make = Callable[..., RunConfig]
RAY = {"system": {"driver": "ray"}, "rollout": {"actors": 2, "lanes": 3}, "total_steps": 480}


@pytest.mark.usefixtures("beside_other_rays")
def test_a_whole_run_on_ray_is_stored_and_resumes(tmp_path: Path, probe_config: Make) -> None:
    config = probe_config(**RAY, evaluation={"every_steps": 480, "episodes": 2})

    def go(config: RunConfig, resume: Path | None = None) -> RunResult:
        return run_training(
            config,
            tmp_path,
            store_url=f"sqlite:///{tmp_path}/mario.db",
            tracking_uri=default_tracking_uri(),
            address="local",
            resume=None if resume is None else load_checkpoint(resume),
        )

    first = go(config)
    checkpoint = list_checkpoints(first.directory / "checkpoints")[0]
    second = go(probe_config(**RAY | {"total_steps": 960}), checkpoint)
    assert second.run_id == first.run_id
    assert (first.agent_steps, second.agent_steps) == (480, 960)
    final = load_checkpoint(list_checkpoints(second.directory / "checkpoints")[0])
    with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
        rows = store.episodes(second.run_id)
    keys = Counter((r["actor"], r["incarnation"], r["sequence"]) for r in rows)
    assert set(keys.values()) == {1}
    assert len(rows) == final.meta["counters"]["episodes"]
    assert {(r["actor"], r["lane"]) for r in rows} == {(a, n) for a in range(2) for n in range(3)}


@pytest.mark.usefixtures("without_other_rays")
@pytest.mark.timeout(900)
def test_bad_addresses_and_taken_ports_are_one_line(tmp_path: Path, probe_config: Make) -> None:
    def go(config: RunConfig, address: str | None) -> None:
        run_training(
            config,
            tmp_path,
            store_url=f"sqlite:///{tmp_path}/mario.db",
            tracking_uri=default_tracking_uri(),
            address=address,
        )

    with pytest.raises(UserError, match=r"cannot reach Ray at auto.*ray start --head"):
        go(probe_config(**RAY), "auto")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = probe_config(**RAY | {"system": {"driver": "ray", "dashboard_port": port}})
        with pytest.raises(UserError, match=f"port {port} is taken"):
            go(config, "local")
    assert not list(tmp_path.iterdir()), "no half-made run"
