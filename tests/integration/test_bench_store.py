"""bench store and bench outage: real databases, small."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from support.commands import Result

from mario_dist import config as configuration
from mario_dist.bench.outage import count_episodes, speeds_between
from mario_dist.bench.postgres import temporary_postgres
from mario_dist.config import RunConfig
from mario_dist.store import EpisodeRow, MetricRow

Here = Callable[..., Result]

QUESTIONS = {
    "runs list",
    "report",
    "list_runs",
    "get_run",
    "episode_summary",
    "episodes",
    "metrics",
    "newest_metrics",
    "checkpoints",
    "evaluations",
}


def test_both_databases_are_filled_and_asked(here: Here) -> None:
    with temporary_postgres() as server:
        command = ("bench", "store", "--rows", "1000", "--runs", "2", "--postgres", server.url)
        done = here(*command, "--json")
        assert done.returncode == 0, done.stderr
        again = here(*command)
    document = json.loads(done.stdout)
    assert set(document) == {"machine", "rows", "runs", "sqlite", "postgres", "ratio"}
    assert (document["rows"], document["runs"]) == (1000, 2)
    for name in ("sqlite", "postgres"):
        of = document[name]
        assert set(of) == {"rows_per_s", "writer_rows_per_s", "queries_ms", "one_run_queries_ms"}
        assert min(of["rows_per_s"], of["writer_rows_per_s"]) > 0
        for queries in (of["queries_ms"], of["one_run_queries_ms"]):
            assert set(queries) == QUESTIONS
            assert all(0 < spread["median"] <= spread["max"] for spread in queries.values())
    rates = {name: document[name]["rows_per_s"] for name in ("sqlite", "postgres")}
    assert document["ratio"] == {"postgres": pytest.approx(rates["sqlite"] / rates["postgres"])}
    assert again.returncode == 1
    assert "has runs; give an empty database" in again.stderr


def test_without_postgresql_it_is_sqlite_alone(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mario_dist.bench.store.installed", lambda: False)
    done = here("bench", "store", "--rows", "100", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "SQLite alone" in document["note"]
    assert "postgres" not in document
    assert document["ratio"] == {}
    assert done.stderr.startswith(document["note"])
    table = here("bench", "store", "--rows", "100", "--runs", "1")
    assert "through the journal" in table.stdout
    assert "a run of 100 episodes" in table.stdout


def test_what_is_no_postgresql_is_refused(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    done = here("bench", "store", "--postgres", "sqlite:///mario.db")
    assert done.returncode == 2
    assert "--postgres" in done.stderr
    monkeypatch.setattr("mario_dist.bench.postgres.installed", lambda: False)
    done = here("bench", "outage")
    assert (done.returncode, done.stdout) == (1, "")
    assert "uv sync" in done.stderr


def test_an_outage_costs_a_training_no_episode(
    here: Here, probe_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    path = tmp_path / "probe.yaml"
    path.write_text(configuration.dump(probe_config(checkpoint={"every_steps": 2000})))
    done = here("bench", "outage", str(path), "--down", "3", "--around", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["down_s"] >= 3
    assert min(document["steps_per_s"].values()) > 0
    speeds = document["steps_per_s"]
    assert min(speeds["before"], speeds["after"]) <= speeds["during"] / document["ratio"]
    episodes = document["episodes"]
    assert episodes["counted"] == episodes["stored"] == episodes["distinct"] > 20
    assert episodes["holes"] == 0
    assert document["exactly_once"]
    assert document["recovered_s"] > 0


def test_a_training_that_fails_is_one_line(here: Here, tmp_path: Path) -> None:
    done = here("bench", "outage", "configs/smoke.yaml", f"env.rom={tmp_path}/none.nes", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the training ended with exit code 1: error: " in done.stderr
    assert "none.nes" in done.stderr


def row(actor: int, incarnation: int, sequence: int) -> EpisodeRow:
    return cast(EpisodeRow, {"actor": actor, "incarnation": incarnation, "sequence": sequence})


def test_episodes_that_are_missing_or_there_twice_are_found() -> None:
    rows = [row(0, 0, 1), row(0, 0, 0), row(0, 1, 0), row(1, 0, 0)]
    assert count_episodes(rows, 4) == {"counted": 4, "stored": 4, "distinct": 4, "holes": 0}
    assert count_episodes(rows[:1], 1) == {"counted": 1, "stored": 1, "distinct": 1, "holes": 1}
    assert count_episodes([*rows, rows[0]], 5)["distinct"] == 4
    assert count_episodes([], 0) == {"counted": 0, "stored": 0, "distinct": 0, "holes": 0}


def test_speeds_are_those_between_the_marks() -> None:
    reports = [
        MetricRow(agent_steps=steps, wall_s=wall_s, name="episodes", value=0.0)
        for steps, wall_s in ((0, 10.0), (100, 11.0), (150, 12.0), (350, 13.0))
    ]
    assert speeds_between(reports, (10.0, 11.0, 12.0, 12.5)) == [100.0, 50.0, 200.0]
