import fcntl
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from mario_dist.errors import UserError
from mario_dist.registry import Tracker, default_tracking_uri
from mario_dist.registry.connection import MESSAGE_LIMIT, import_mlflow, redact, resolve_uri


def test_importing_the_registry_does_not_import_mlflow() -> None:
    check = "import sys, mario_dist.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_openers_of_one_database_take_turns(sqlite_uri: str) -> None:
    Tracker(sqlite_uri)
    directory = os.open(Path(sqlite_uri.removeprefix("sqlite:///")).parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    opener = threading.Thread(target=Tracker, args=(sqlite_uri,))
    opener.start()
    opener.join(timeout=0.3)
    assert opener.is_alive()
    os.close(directory)
    opener.join(timeout=30)
    assert not opener.is_alive()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "is no tracking URI"),
        ("mlruns", "is no tracking URI"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite://runs/mlflow.db", "must name a file"),
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("http://user:s3cret@127.0.0.1:9", r"MLflow at http://\*\*\*@127\.0\.0\.1:9: .*refused"),
        ("http://no-such-host.invalid", "no-such-host"),
        ("postgres://user:s3cret@127.0.0.1:9/db", "refused"),
        ("postgres://user:s3cret@127.0.0.1:9/db?password=s3cret", "refused"),
        ("file:///tmp/mlruns", "maintenance mode"),
        ("nonsense://user:s3cret@host", r"unsupported URI 'nonsense://\*\*\*@host'"),
        ("postgres://user:s3cret/1@127.0.0.1:9/db", "%-encoded"),
        ("postgres://user:s3cret?1@127.0.0.1:9/db", "%-encoded"),
    ],
)
def test_mlflow_that_cannot_be_opened_is_one_line_without_a_password(bad: str, message: str) -> None:
    import_mlflow()
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        Tracker(bad)
    assert time.monotonic() - started < 30
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value)) < MESSAGE_LIMIT + 150


def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 20
    # From here on MLflow is patient, but not for its own four minutes.
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but long enough to be read as one " * 40)
    with pytest.raises(UserError, match=r"notes\.db: file is not a database"):
        Tracker(f"sqlite:///{tmp_path}/notes.db")


def test_the_run_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mario.db")) as connection:
        connection.execute("CREATE TABLE episodes (run_id TEXT)")
        with pytest.raises(UserError, match="is the run database"):
            Tracker(f"sqlite:///{tmp_path}/mario.db")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("episodes",)]


def test_uris_are_taken_as_users_paste_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:////var/mlflow.db") == "sqlite:////var/mlflow.db"
    assert resolve_uri("postgres://u:p@h/db") == "postgresql+psycopg2://u:p@h/db"
    assert resolve_uri("postgresql://u:p@h/db") == "postgresql+psycopg2://u:p@h/db"
    assert resolve_uri("http://localhost:5000") == "http://localhost:5000"
    assert redact("postgresql+psycopg2://u:p@h/db?password=x") == "postgresql+psycopg2://***@h/db"


def test_the_default_is_a_file_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARIO_DIST_RUNS")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri() == "sqlite:///runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_tracking_uri() == "http://mlflow:5000"
