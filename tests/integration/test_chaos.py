"""bench chaos and bench load: a training that is harmed, and one that has too few cores."""

import json
import math
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.commands import Result
from support.disks import unprivileged
from support.training import go

from mario_dist.bench.chaos import KINDS, Losses, _books
from mario_dist.bench.load import _processes
from mario_dist.bench.outage import launch
from mario_dist.checkpoint import list_checkpoints
from mario_dist.config import RunConfig
from mario_dist.store import RunStore

ROOT = Path(__file__).parents[2]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_every_fault_once() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "chaos", "--seed", "2", "--json"], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["books"]["wrong"] == []
    assert document["books"]["episodes"]["stored"] > 0
    assert {row["times"] for row in document["faults"].values()} == {1}
    assert document["lost"]["actor_restarts"] >= 2  # of the actor and of the node
    assert document["lost"]["replay_lost"] > 0
    # Only these may end a run; all others are borne.
    assert {name for name, row in document["faults"].items() if row["starts"]} <= {
        "driver",
        "learner",
        "disk",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--faults", "actor,meteor"), "there is no fault meteor; faults are actor, shard"),
        (("--faults", ""), "there is no fault without a name; faults are actor"),
        (("configs/ppo-1-1.yaml", "--faults", "shard"), "algo.name=ppo has no replay shards"),
        (("algo.gama=1",), "unknown key algo.gama"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(
    arguments: tuple[str, ...], says: str, here: Callable[..., Result]
) -> None:
    told = here("bench", "chaos", *arguments)
    assert (told.returncode, told.stdout) == (1, "")
    assert says in told.stderr


def test_the_help_names_every_fault(here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert ",".join(KINDS) in here("bench", "chaos", "--help").stdout


def test_a_full_disk_takes_root(here: Callable[..., Result]) -> None:
    with unprivileged():
        told = here("bench", "chaos", "--faults", "disk")
    assert "the fault disk mounts a small file system" in told.stderr


@pytest.mark.usefixtures("beside_other_rays")
def test_a_load_is_measured_process_by_process(here: Callable[..., Result]) -> None:
    small = ["rollout.lanes=2", "rollout.unroll_length=8", "network.hidden=16", "learner.threads=1"]
    told = here("bench", "load", *small, "--minutes", "0.3", "--times", "1", "--json")
    document = json.loads(told.stdout)
    assert document["agent_steps"] > 0
    assert document["spilled_bytes"] == 0
    assert document["steady"]["queue"]
    assert document["steady"]["object_store"]
    actors = document["processes"]["ray::RolloutActor"]
    assert actors["number"] == document["actors"]
    assert {"driver", "ray::LearnerActor", "raylet"} <= set(document["processes"])
    assert all(row["private_mib"] > 1.0 for row in document["processes"].values())


def test_memory_that_grows_is_found() -> None:
    marks = [0.0, 900.0, 1800.0, 2700.0, 3600.0]
    series = [(float(at), 100.0 + 0.02 * at) for at in range(0, 3600, 10)]
    flat = [(float(at), 100.0 + at % 7) for at in range(0, 3600, 10)]
    late = [(float(at), 500.0) for at in range(3000, 3600, 10)]
    found = _processes({("grows", 1): series, ("flat", 2): flat, ("flat", 3): flat, ("late", 4): late}, marks)
    assert set(found) == {"grows", "flat"}
    assert found["grows"]["growth_mib_per_h"] == pytest.approx(72.0, rel=0.01)
    assert (found["grows"]["steady"], found["flat"]["steady"]) == (False, True)
    assert found["flat"]["number"] == 2


def test_books_that_do_not_balance_are_found(tmp_path: Path, probe_config: Callable[..., RunConfig]) -> None:
    result = go(probe_config(), tmp_path)
    _, before, *_ = list_checkpoints(result.directory / "checkpoints")

    most_s = math.inf

    def wrong() -> list[str]:
        with RunStore(f"sqlite:///{tmp_path}/mario.db") as store:
            found: list[str] = _books(store, result.run_id, result.directory, most_s)["wrong"]
        return found

    def change(statement: str) -> None:
        with closing(sqlite3.connect(tmp_path / "mario.db")) as database:
            assert database.execute(statement).rowcount > 0
            database.commit()

    assert wrong() == []
    most_s = 0.0
    assert wrong() == ["time_passes"]
    most_s = math.inf
    (before / "meta.json").write_text("{}")
    assert wrong() == ["checkpoints_whole"]
    change("UPDATE metrics SET value = 0 WHERE name = 'version' AND agent_steps > 256")
    assert wrong() == ["versions_grow", "checkpoints_whole"]
    change("UPDATE episodes SET length = length + 1000")
    assert wrong() == ["steps_once", "versions_grow", "checkpoints_whole"]
    change("DELETE FROM episodes WHERE sequence = 1")
    assert wrong() == ["every_episode_once", "steps_once", "versions_grow", "checkpoints_whole"]


def test_what_was_lost_is_that_of_all_starts() -> None:
    losses = Losses()
    losses.add({})
    losses.add({"agent_steps": 900.0, "actor_restarts": 2.0, "replay_lost": 700.0})
    # A start that ended before its first report.
    losses.add({"agent_steps": 900.0, "actor_restarts": 2.0, "replay_lost": 700.0})
    losses.add({"agent_steps": 1200.0, "actor_restarts": 3.0, "replay_lost": 700.0, "lost_unrolls": 4.0})
    assert losses.total == {"actor_restarts": 5, "lost_unrolls": 4, "replay_lost": 1400}


def test_lines_of_an_earlier_start_are_not_reports_of_this_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("steps=2048 steps/s=309\n")
    training = launch(["--help"], log, os.environ)
    assert training.ended(60.0) == 0
    assert training.said()[0] == "steps=2048 steps/s=309"
    assert not training.has_reported()
    with log.open("a") as lines:
        lines.write("steps=4096 steps/s=309\n")
    assert training.has_reported()
