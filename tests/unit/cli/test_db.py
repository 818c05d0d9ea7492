"""mario-dist db: what it prints and how it ends, on a database and journals as trainings leave them."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import Result
from support.disks import unprivileged
from support.store import make_of_revision

from mario_dist.store import RunRow, RunStore
from mario_dist.store.journal import Journal, segments
from mario_dist.store.rows import Rows, metric_values
from mario_dist.store.schema import HEAD
from mario_dist.system.run_lock import is_trained, lock_run

Here = Callable[..., Result]

TABLES = {"runs", "episodes", "metrics", "checkpoints", "evaluations", "promotions"}


@pytest.fixture
def database(own_runs: Path) -> Path:
    """Where the run database is by default."""
    return own_runs / "mario.db"


def a_run(run_id: str) -> RunRow:
    return RunRow(
        id=run_id,
        name="test",
        seed=1,
        total_steps=10,
        level="1-1",
        algo="ppo",
        config={},
        directory=f"runs/{run_id}",
    )


def make_runs(database: Path, *run_ids: str) -> None:
    with RunStore(str(database)) as store:
        for run_id in run_ids:
            store.create_run(a_run(run_id))
            store.add_metrics(run_id, 1, 0.5, {"loss": 1.0})


def leave_journal(runs: Path, run_id: str, steps: int = 2) -> Path:
    """A journal with two metrics, as a training that was killed leaves it."""
    directory = runs / run_id / "journal"
    journal = Journal(directory)
    journal.append(Rows(metrics=metric_values(steps, 0.5, {"kl": 0.1, "loss": 0.2})))
    journal.seal()
    return directory


TRAIN = """
import fcntl, sys
from pathlib import Path
from mario_dist.store.journal import Journal
from mario_dist.store.rows import Rows, metric_values

directory = Path(sys.argv[1])
directory.mkdir(parents=True)
lock = (directory / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
journal = Journal(directory / "journal")
for steps in range(2, 12):
    journal.append(Rows(metrics=metric_values(steps, 0.5, {"loss": 0.1})))
print("training", flush=True)
sys.stdin.readline()
"""


@contextmanager
def training(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains a run as far as others can see: its lock and ten rows in its journal."""
    command = [sys.executable, "-c", TRAIN, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "training\n"
            yield process
        finally:
            process.kill()


def document(result: Result) -> dict[str, object]:
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


# upgrade


def test_upgrade_makes_the_database_and_says_so(here: Here, database: Path) -> None:
    first = here("db", "upgrade")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"{database}: from nothing to schema {HEAD}\n"
    again = here("db", "upgrade")
    assert again.returncode == 0
    assert again.stdout == f"{database} is at the newest schema, {HEAD}\n"
    assert document(here("db", "upgrade", "--json")) == {
        "database": str(database),
        "before": HEAD,
        "after": HEAD,
    }


def test_upgrade_of_an_old_database(here: Here, database: Path) -> None:
    make_of_revision(str(database), "0001")
    assert document(here("db", "upgrade", "--json"))["before"] == "0001"
    assert here("db", "check").returncode == 0


def test_a_database_that_is_away_is_one_line(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARIO_DIST_DB", "postgresql://user:s3cret@127.0.0.1:1/runs")
    for arguments in (["upgrade"], ["check"], ["export", "/nowhere"], ["replay"]):
        result = here("db", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("error: cannot use the run database postgresql://127.0.0.1")
        assert result.stderr.count("\n") == 1
        assert "s3cret" not in result.stderr


# check


def test_check_of_a_sound_database_is_exit_code_0(here: Here, database: Path) -> None:
    make_runs(database, "r1", "r2")
    result = here("db", "check")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"database   {database}, schema {HEAD}"
    assert lines[-1] == "sound"
    assert {line.split()[0]: line.split()[1] for line in lines[1:-1]} == {
        **dict.fromkeys(TABLES, "0"),
        "runs": "2",
        "metrics": "2",
    }
    as_json = here("db", "check", "--json")
    assert as_json.returncode == 0
    assert document(as_json) == {
        "where": str(database),
        "revision": HEAD,
        "newest": HEAD,
        "rows": {**dict.fromkeys(TABLES, 0), "runs": 2, "metrics": 2},
        "problems": [],
        "ok": True,
    }


def test_check_of_an_old_database_is_exit_code_1_and_changes_nothing(here: Here, database: Path) -> None:
    make_of_revision(str(database), "0001")
    before = database.read_bytes()
    result = here("db", "check")
    assert (result.returncode, result.stderr) == (1, "")
    assert f"PROBLEM    it has the schema 0001, not {HEAD}: run 'mario-dist db upgrade'\n" in result.stdout
    assert "sound" not in result.stdout
    as_json = here("db", "check", "--json")
    assert as_json.returncode == 1
    found = document(as_json)
    assert (found["ok"], found["revision"], found["rows"]) == (False, "0001", {})
    assert database.read_bytes() == before


def test_check_where_nothing_was_trained_yet_makes_nothing(here: Here, own_runs: Path) -> None:
    result = here("db", "check")
    assert result.returncode == 1
    assert "PROBLEM    it is not there: run 'mario-dist db upgrade'\n" in result.stdout
    assert not own_runs.exists()


def test_check_of_a_database_with_several_problems_tells_all(here: Here, database: Path) -> None:
    make_runs(database, "r1")
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM runs")
        connection.execute("DROP INDEX ix_episodes_run_id_agent_steps")
    connection.close()
    problems = document(here("db", "check", "--json"))["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 2
    assert "ix_episodes_run_id_agent_steps" in problems[0]
    assert problems[1] == "metrics has 1 rows of runs that are not there"


# export


def test_export_writes_every_table(here: Here, database: Path, tmp_path: Path) -> None:
    make_runs(database, "r1", "r2")
    out = tmp_path / "out"
    result = here("db", "export", str(out))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{out}/metrics.parquet  2 rows\n" in result.stdout
    assert {path.name for path in out.iterdir()} == {f"{name}.parquet" for name in TABLES}
    assert pq.read_table(out / "metrics.parquet").to_pylist() == [
        {"run_id": run_id, "agent_steps": 1, "name": "loss", "wall_s": 0.5, "value": 1.0}
        for run_id in ("r1", "r2")
    ]


@pytest.mark.parametrize(("ref", "run_id"), [("a", "a-run"), ("latest", "b-run")])
def test_export_of_one_run_as_csv(here: Here, database: Path, tmp_path: Path, ref: str, run_id: str) -> None:
    make_runs(database, "a-run", "b-run")
    out = tmp_path / "out"
    result = here("db", "export", str(out), "--format", "csv", "--run", ref, "--json")
    assert result.returncode == 0
    assert document(result) == {
        "files": {f"{out}/{name}.csv": int(name in ("runs", "metrics")) for name in TABLES}
    }
    with (out / "runs.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [run_id]


def test_what_cannot_be_exported_is_one_line(here: Here, database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, code, said in (
        (["--format", "xlsx"], 2, "'xlsx' is not one of"),
        ([], 1, f"there is no run database {database}"),
    ):
        result = here("db", "export", str(out), *arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    make_of_revision(str(database), "0001")
    assert "not at the newest schema" in here("db", "export", str(out)).stderr
    assert here("db", "upgrade").returncode == 0
    assert "there is no run 'r9'" in here("db", "export", str(out), "--run", "r9").stderr
    assert not out.exists()
    out.write_text("")
    result = here("db", "export", str(out))
    assert (result.returncode, result.stderr) == (1, f"error: cannot write to {out}: File exists\n")


# replay


def test_replay_brings_what_dead_processes_left(here: Here, database: Path, own_runs: Path) -> None:
    make_runs(database, "r1", "r2", "r3")
    left = [leave_journal(own_runs, run_id) for run_id in ("r1", "r3")]
    checked = here("db", "check")
    assert checked.returncode == 1
    assert [line for line in checked.stdout.splitlines() if line.startswith("PROBLEM")] == [
        f"PROBLEM    rows of {run_id} wait in its journal: run 'mario-dist db replay'"
        for run_id in ("r1", "r3")
    ]
    assert all(len(segments(directory)) == 1 for directory in left)  # a check takes nothing
    result = here("db", "replay")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "r1  2 rows\nr3  2 rows\n"
    assert not any(directory.exists() for directory in left)
    with RunStore(str(database)) as store:
        assert [len(store.metrics(run_id)) for run_id in ("r1", "r2", "r3")] == [3, 1, 3]
    assert here("db", "check").returncode == 0
    again = here("db", "replay")
    assert (again.returncode, again.stdout) == (0, "no journal has anything left\n")
    assert document(here("db", "replay", "--json")) == {"rows": {}, "skipped": {}}


def test_a_run_that_is_training_is_left_alone_until_its_process_is_dead(
    here: Here, database: Path, own_runs: Path
) -> None:
    make_runs(database, "r1", "r2")
    leave_journal(own_runs, "r2")
    with training(own_runs / "r1") as process:
        assert document(here("db", "check", "--json"))["problems"] == [
            "rows of r2 wait in its journal: run 'mario-dist db replay'"
        ]
        result = here("db", "replay", "--json")
        assert result.returncode == 1
        assert document(result) == {
            "rows": {"r2": 2},
            "skipped": {"r1": "another process is training r1; stop it first"},
        }
        assert result.stderr == "error: 1 journal(s) were left alone\n"
        assert len(segments(own_runs / "r1" / "journal")) == 1
        assert here("db", "check").returncode == 0  # its rows are on their way
        process.kill()
        process.wait()
        assert here("db", "check").returncode == 1
        result = here("db", "replay")
        assert (result.returncode, result.stdout) == (0, "r1  10 rows\n")
    assert here("db", "check").returncode == 0
    with RunStore(str(database)) as store:
        assert [row["agent_steps"] for row in store.metrics("r1")] == list(range(1, 12))


def test_a_look_takes_no_lock_from_a_training(own_runs: Path, here: Here, database: Path) -> None:
    make_runs(database, "r1")
    directory = leave_journal(own_runs, "r1").parent
    assert not is_trained(directory)
    assert not (directory / "lock").exists()
    with lock_run(directory):
        assert is_trained(directory)
        assert here("db", "check").returncode == 0
    assert not is_trained(directory)
    with lock_run(directory):
        pass


def test_a_journal_of_a_run_that_is_not_in_the_database_is_left_alone(
    here: Here, database: Path, own_runs: Path
) -> None:
    make_runs(database, "r12", "r3")
    left = [leave_journal(own_runs, run_id) for run_id in ("other", "r1", "r3")]
    result = here("db", "replay")
    assert result.returncode == 1
    assert "other  left alone: there is no run 'other'" in result.stdout
    # The beginning of another run's id is no run.
    assert f"r1  left alone: there is no run 'r1' in {database}\n" in result.stdout
    assert "r3  2 rows\n" in result.stdout
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "error: 2 journal(s) were left alone\n"
    assert [directory.exists() for directory in left] == [True, True, False]
    with RunStore(str(database)) as store:
        assert len(store.metrics("r12")) == 1


def test_a_journal_of_another_user_is_left_alone(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="mario-dist-shared-") as folder:
        runs = Path(folder)
        monkeypatch.setenv("MARIO_DIST_RUNS", folder)
        make_runs(runs / "mario.db", "r1", "r2")
        for run_id in ("r1", "r2"):
            leave_journal(runs, run_id)
        [segment] = segments(runs / "r1" / "journal")
        segment.chmod(0o600)
        for path in (runs, *runs.rglob("*")):
            if path != segment:
                path.chmod(0o777 if path.is_dir() else 0o666)
        if os.geteuid() != 0:
            segment.chmod(0)
        with unprivileged():
            result = here("db", "replay")
        assert (result.returncode, result.stderr) == (1, "error: 1 journal(s) were left alone\n")
        assert result.stdout == f"r2  2 rows\nr1  left alone: cannot use {segment}: Permission denied\n"
        assert segment.exists()


def test_a_damaged_line_is_told_of_and_the_others_are_brought(
    here: Here, database: Path, own_runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_runs(database, "r1")
    leave_journal(own_runs, "r1", steps=2)
    leave_journal(own_runs, "r1", steps=3)
    path = segments(own_runs / "r1" / "journal")[0]
    path.write_bytes(path.read_bytes().replace(b"loss", b"boss"))
    result = here("db", "replay")
    assert (result.returncode, result.stdout) == (0, "r1  2 rows\n")
    assert "1 line(s) are damaged" in caplog.text
    assert [entry.suffix for entry in path.parent.iterdir()] == [".damaged"]
    with RunStore(str(database)) as store:
        assert [row["agent_steps"] for row in store.metrics("r1")] == [1, 3, 3]
    assert here("db", "check").returncode == 0
