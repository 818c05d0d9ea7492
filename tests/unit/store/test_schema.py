import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, inspect, make_url, text
from support.disks import unprivileged
from support.together import run_together

from mario_dist.errors import UserError
from mario_dist.store import (
    EvaluationRow,
    RunRow,
    RunStore,
    StoreUnavailable,
    default_url,
    normalise_url,
    tables,
)
from mario_dist.store.engine import open_engine
from mario_dist.store.schema import HEAD, alembic_config

MakeRun = Callable[..., RunRow]


def test_a_fresh_database_gets_its_tables_and_keeps_its_rows(url: str, make_run: MakeRun) -> None:
    with RunStore(url) as store:
        store.create_run(make_run("r1"))
    with RunStore(url) as store:
        assert store.get_run("latest").id == "r1"


def test_the_migrations_make_the_tables_that_the_code_declares(url: str) -> None:
    RunStore(url).close()
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        script = ScriptDirectory.from_config(alembic_config(connection))
        assert script.get_current_head() == HEAD
    engine.dispose()


def test_every_index_and_foreign_key_is_there(url: str) -> None:
    RunStore(url).close()
    engine, _ = open_engine(url, 5)
    inspector = inspect(engine)
    for table in tables.metadata.tables.values():
        indices = {index["name"] for index in inspector.get_indexes(table.name)}
        assert indices == {index.name for index in table.indexes}
        keys = inspector.get_foreign_keys(table.name)
        assert [key["referred_table"] for key in keys] == ["runs"] * (table.name != "runs")
    engine.dispose()


def test_migrations_go_down_and_up_again(url: str, make_run: MakeRun) -> None:
    RunStore(url).close()
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    with RunStore(url) as store:
        store.create_run(make_run("r1"))


def test_each_migration_goes_down_and_up_with_rows_in_the_tables(url: str, make_run: MakeRun) -> None:
    with RunStore(url) as store:
        store.create_run(make_run("r1"))
        store.add_metrics("r1", 1, 0.5, {"loss": 1.0})
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        config = alembic_config(connection)
        revisions = [s.revision for s in ScriptDirectory.from_config(config).walk_revisions()]
        for below in revisions[1:]:
            command.downgrade(config, below)
            assert connection.scalar(text("SELECT count(*) FROM metrics")) == 1
        for above in reversed(revisions[:-1]):
            command.upgrade(config, above)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        assert connection.scalar(text("SELECT count(*) FROM metrics")) == 1
    engine.dispose()
    assert len(revisions) >= 3


def test_a_store_of_the_first_version_is_upgraded_with_its_rows(url: str, make_run: MakeRun) -> None:
    Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        run = make_run("r1")
        connection.execute(insert(tables.runs).values({f.name: getattr(run, f.name) for f in fields(run)}))
    assert not inspect(engine).has_table("evaluations")
    engine.dispose()
    with RunStore(url) as store:
        assert store.get_run("r1") == run
        row = EvaluationRow(agent_steps=1, path="p", protocol="{}", report={"clear_rate": 0.5})
        store.add_evaluation("r1", row)
        assert store.evaluations("r1") == [row]


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    with RunStore(url):
        _execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match=r"newer mario-dist \(schema 9999") as caught:
        RunStore(url)
    _assert_one_line(caught.value)


def test_a_database_of_mlflow_is_refused(url: str) -> None:
    _execute(url, "CREATE TABLE alembic_version (version_num VARCHAR(32))")
    _execute(url, "INSERT INTO alembic_version VALUES ('0584bdc529eb')")
    _execute(url, "CREATE TABLE experiments (experiment_id INTEGER)")
    with pytest.raises(UserError, match="MLflow's database") as caught:
        RunStore(url)
    _assert_one_line(caught.value)


OPEN_TOGETHER = """
import sys
from mario_dist.store import RunStore
print("ready", flush=True)
sys.stdin.readline()
RunStore(sys.argv[1]).close()
"""


def test_processes_may_open_a_fresh_database_at_once(url: str) -> None:
    run_together(OPEN_TOGETHER, [(url,)] * 2)
    with RunStore(url) as store:
        assert store.list_runs() == []


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://runs/mario.db",
        "mysql://user:s3cret@host/db",
        "postgres://user:s3/cret@host/db",
        "postgres://user:s3cret@127.0.0.1:9/db",
        "postgres://user:s3cret@127.0.0.1:9/db?password=s3cret",
        "postgres://user@127.0.0.1:9/db?password=s3cret&nonsense=1",
        "postgres://user:s3cret@no-such-host.invalid/db",
        "localhost:5432/mario",
        "sqlite:////dev/null/mario.db",
        "sqlite:////",
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_a_password(bad: str) -> None:
    with pytest.raises(UserError) as caught:
        RunStore(bad)
    _assert_one_line(caught.value)
    assert "s3" not in str(caught.value)


def test_an_unreachable_host_is_given_up_quickly() -> None:
    # 192.0.2.0/24 is reserved for documentation: whether packets vanish or are refused, no one answers.
    with pytest.raises(StoreUnavailable, match=r"postgresql://192\.0\.2\.1/db"):
        RunStore("postgresql://me@192.0.2.1/db?connect_timeout=2")


def test_a_missing_database_is_named(postgres_url: str) -> None:
    missing = make_url(postgres_url).set(database="no_such_db").render_as_string(hide_password=False)
    with pytest.raises(UserError, match='database "no_such_db" does not exist') as caught:
        RunStore(missing)
    _assert_one_line(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database, but long enough to be read as one " * 40)
    with pytest.raises(UserError, match=r"notes\.db: file is not a database") as caught:
        RunStore(str(file))
    _assert_one_line(caught.value)
    assert file.read_text().startswith("not a database")


def test_a_directory_that_cannot_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="mario-dist-ro-") as directory:
        locked = Path(directory)
        locked.chmod(0o555)
        with unprivileged():
            with pytest.raises(UserError, match="unable to open database file") as caught:
                RunStore(str(locked / "mario.db"))
            _assert_one_line(caught.value)
            with pytest.raises(UserError, match=r"cannot make the directory .*Permission denied") as caught:
                RunStore(str(locked / "runs" / "mario.db"))
            _assert_one_line(caught.value)
        locked.chmod(0o755)


def test_a_store_that_is_read_only_is_refused_at_opening(tmp_path: Path) -> None:
    file = tmp_path / "mario.db"
    RunStore(str(file)).close()
    with pytest.raises(UserError, match="attempt to write a readonly database") as caught:
        RunStore(f"sqlite:///file:{file}?mode=ro&uri=true")
    _assert_one_line(caught.value)


def test_a_locked_store_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mario.db"
    with RunStore(str(file), busy_timeout_s=0.1) as store:
        holder = sqlite3.connect(file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked") as caught:
            store.rewind("r1", 0)
        holder.close()
    _assert_one_line(caught.value)


def test_sqlite_is_set_up_for_a_writer_and_readers(tmp_path: Path) -> None:
    RunStore(str(tmp_path / "mario.db")).close()
    engine, _ = open_engine(str(tmp_path / "mario.db"), 12.0)
    with engine.begin() as connection:
        pragma = {
            n: connection.scalar(text(f"PRAGMA {n}"))
            for n in ("journal_mode", "busy_timeout", "foreign_keys")
        }
    engine.dispose()
    assert pragma == {"journal_mode": "wal", "busy_timeout": 12_000, "foreign_keys": 1}


def test_the_file_stays_the_same_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: MakeRun
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunStore("sqlite:///runs/mario.db") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store._engine.dispose()  # the next connection is a new one
        store.create_run(make_run("r1"))
    assert (tmp_path / "runs" / "mario.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("pasted", "normal"),
    [
        ("postgres://u:p@h/db", "postgresql+psycopg2://u:p@h/db"),
        ("postgresql://u:p@h:5432/db?sslmode=require", "postgresql+psycopg2://u:p@h:5432/db?sslmode=require"),
        ("postgresql+psycopg://u@h/db", "postgresql+psycopg2://u@h/db"),
        ("  postgresql+psycopg2://u@h/db\n", "postgresql+psycopg2://u@h/db"),
        ("sqlite:///runs/mario.db", "sqlite:///runs/mario.db"),
        ("runs/mario.db", "sqlite:///runs/mario.db"),
        ("/var/lib/mario.db", "sqlite:////var/lib/mario.db"),
    ],
)
def test_urls_are_taken_as_users_paste_them(pasted: str, normal: str) -> None:
    assert normalise_url(pasted) == normal


def test_a_path_with_odd_characters_is_that_path(tmp_path: Path) -> None:
    file = tmp_path / "a b?c%20d.db"
    RunStore(str(file)).close()
    assert file.exists()


def test_the_default_is_a_file_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARIO_DIST_RUNS")
    monkeypatch.delenv("MARIO_DIST_DB", raising=False)
    assert default_url() == "sqlite:///runs/mario.db"
    monkeypatch.setenv("MARIO_DIST_DB", "postgres://h/db")
    assert default_url() == "postgres://h/db"


def _execute(url: str, statement: str) -> None:
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _assert_one_line(error: UserError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
