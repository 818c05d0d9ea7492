import csv
import json
import math
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alembic import command
from sqlalchemy import JSON, Boolean, Column, Double, Integer, delete, insert, inspect, select, text
from support.disks import largest_file, small_disk, unprivileged

from mario_dist.errors import UserError
from mario_dist.store import (
    CheckpointRow,
    EvaluationRow,
    PromotionRow,
    RunRow,
    RunStore,
    check_database,
    export_database,
    tables,
    upgrade_database,
)
from mario_dist.store.engine import open_engine
from mario_dist.store.rows import Rows, episode_values, metric_values, row_values
from mario_dist.store.schema import HEAD, alembic_config
from mario_dist.store.tables import NanDouble, UtcDateTime
from mario_dist.types import EpisodeRecord

MakeRun = Callable[..., RunRow]
MakeRecord = Callable[..., EpisodeRecord]
Fill = Callable[[str], None]

NOON = datetime(2026, 3, 1, 12, 0, 0, 789, tzinfo=UTC)
TABLES = tables.metadata.sorted_tables


def promotion(from_version: int | None, to_version: int | None, **changes: object) -> PromotionRow:
    values: dict[str, object] = {
        "model": "mario-1-1-ppo",
        "alias": "champion",
        "event": "promote",
        "from_version": from_version,
        "to_version": to_version,
        "moved": True,
        "verdict": "passed",
        "registry": "http://mlflow:5000",
    }
    return PromotionRow(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def fill(make_run: MakeRun, record: MakeRecord) -> Fill:
    """Two runs, and something in every table: with text, times, nothing and numbers that are none."""

    def fill(url: str) -> None:
        odd = 'Größe, 马里奥 🍄\nline "two"\r\n'
        report = {"clear_rate": 0.1 + 0.2, "x": {"mean": None, "Ω": [1, odd]}}
        with RunStore(url) as store:
            for n, run_id in enumerate(("r1", "r2")):
                ended: dict[str, object] = {"ended_at": NOON, "git_commit": None, "name": odd} if n else {}
                store.create_run(make_run(run_id, seed=2**40, created_at=NOON + timedelta(days=n), **ended))
                records = [
                    record(0),
                    record(1, episode_return=math.nan, flag_get=True),
                    record(2**33, x_pos_max=5),
                ]
                store.add_episodes(run_id, 10, records)
                store.add_metrics(run_id, 10, 0.5, {"a": 0.1 + 0.2, "b": math.inf, "c": math.nan, odd: -0.0})
                for path, evaluation in (("p1", None), (odd, report)):
                    row = CheckpointRow(
                        agent_steps=10, path=path, kind="best", evaluation=evaluation, created_at=NOON
                    )
                    store.add_checkpoint(run_id, row)
                store.add_evaluation(
                    run_id,
                    EvaluationRow(agent_steps=10, path="p1", protocol="{}", report=report, created_at=NOON),
                )
                store.add_promotion(promotion(n or None, n + 1, run_id=run_id, report=report, reason=odd))
            store.add_promotion(promotion(2, 3, moved=False, verdict="failed", actor="ada@laptop"))

    return fill


def execute(url: str, *statements: Any, foreign_keys: bool = True) -> None:
    engine, _ = open_engine(url, 5)
    with engine.connect() as connection:
        if not foreign_keys:
            connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[union-attr]
        with connection.begin():
            for statement in statements:
                connection.execute(text(statement) if isinstance(statement, str) else statement)
    engine.dispose()


def make_of_revision(url: str, revision: str, run: RunRow) -> None:
    """A database as an earlier mario-dist left it, with a run."""
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), revision)
        connection.execute(insert(tables.runs).values(row_values(run)))
    engine.dispose()


def content(url: str) -> dict[str, object]:
    """Every table of a database, whosever it is."""
    engine, _ = open_engine(url, 5)
    with engine.connect() as connection:
        names = inspect(connection).get_table_names()
        found: dict[str, object] = {
            name: connection.execute(text(f"SELECT * FROM {name}")).all() for name in sorted(names)
        }
        found["indices"] = sorted(
            index["name"] for name in names for index in inspect(engine).get_indexes(name)
        )
    engine.dispose()
    return found


# upgrade


def test_an_upgrade_makes_and_renews_the_tables_and_says_from_where(url: str, make_run: MakeRun) -> None:
    where, before, after = upgrade_database(url)
    assert (before, after) == (None, HEAD)
    assert where in url or where.startswith("postgresql://")
    with RunStore(url) as store:
        store.create_run(make_run("r1"))
    assert upgrade_database(url) == (where, HEAD, HEAD)
    assert check_database(url).problems == []
    assert check_database(url).rows["runs"] == 1


def test_an_upgrade_of_the_first_schema_keeps_its_rows(url: str, make_run: MakeRun) -> None:
    run = make_run("r1")
    make_of_revision(url, "0001", run)
    assert upgrade_database(url)[1:] == ("0001", HEAD)
    assert check_database(url).problems == []
    with RunStore(url) as store:
        assert store.get_run("r1") == run


def test_an_upgrade_of_what_is_not_ours_is_refused(url: str, tmp_path: Path) -> None:
    upgrade_database(url)
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match="newer mario-dist"):
        upgrade_database(url)
    file = tmp_path / "notes.db"
    file.write_text("not a database, but long enough to be read as one " * 40)
    for look in (upgrade_database, check_database):
        with pytest.raises(UserError, match="file is not a database"):
            look(str(file))


# check


def test_a_sound_database_has_no_problems(url: str, fill: Fill) -> None:
    fill(url)
    before = content(url)
    state = check_database(url)
    assert (state.revision, state.newest, state.problems) == (HEAD, HEAD, [])
    assert state.rows == {
        "runs": 2,
        "episodes": 6,
        "metrics": 8,
        "checkpoints": 4,
        "evaluations": 2,
        "promotions": 3,
    }
    assert content(url) == before


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_check_of_an_old_database_says_so_and_changes_nothing(
    url: str, make_run: MakeRun, revision: str
) -> None:
    make_of_revision(url, revision, make_run("r1"))
    before = content(url)
    state = check_database(url)
    assert (state.revision, state.rows) == (revision, {})
    assert state.problems == [f"it has the schema {revision}, not {HEAD}: run 'mario-dist db upgrade'"]
    assert content(url) == before


def test_a_check_makes_no_database(tmp_path: Path, postgres_database: str) -> None:
    state = check_database(f"sqlite:///{tmp_path}/runs/mario.db")
    assert (state.where, state.revision) == (f"{tmp_path}/runs/mario.db", None)
    assert state.problems == ["it is not there: run 'mario-dist db upgrade'"]
    assert list(tmp_path.iterdir()) == []
    state = check_database(postgres_database)
    assert state.problems == ["it has no tables: run 'mario-dist db upgrade'"]
    assert content(postgres_database) == {"indices": []}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP INDEX ix_metrics_run_id_name_agent_steps", "ix_metrics_run_id_name_agent_steps"),
        ("ALTER TABLE runs ADD COLUMN nonsense INTEGER", "nonsense"),
        ("ALTER TABLE episodes DROP COLUMN seconds", "seconds"),
        ("ALTER TABLE promotions DROP COLUMN moved", "moved"),  # which the audit is read by
        ("DROP TABLE evaluations", "evaluations"),
    ],
)
def test_tables_that_were_changed_are_found(url: str, fill: Fill, statement: str, said: str) -> None:
    fill(url)
    execute(url, statement)
    state = check_database(url)
    [found] = [line for line in state.problems if "not as they were made" in line]
    assert said in found
    others = [line for line in state.problems if line != found]
    assert all(line.startswith("it cannot be read: ") and said in line for line in others)
    assert state.rows["metrics"] == 8
    assert_lines(state.problems)


def test_a_column_of_another_type_is_found(postgres_database: str) -> None:
    upgrade_database(postgres_database)
    execute(postgres_database, "ALTER TABLE runs ALTER COLUMN seed TYPE VARCHAR")
    [found] = check_database(postgres_database).problems
    assert "modify_type" in found
    assert "seed" in found


def test_tables_of_others_are_no_problem(url: str) -> None:
    upgrade_database(url)
    execute(url, "CREATE TABLE of_another_program (x INTEGER)", "CREATE INDEX i ON of_another_program (x)")
    assert check_database(url).problems == []


def test_rows_of_runs_that_are_gone_are_found(tmp_path: Path, fill: Fill) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"
    fill(url)
    execute(url, delete(tables.runs).where(tables.runs.c.id == "r1"), foreign_keys=False)
    assert sorted(check_database(url).problems) == [
        f"{table} has {count} rows of runs that are not there"
        for table, count in (
            ("checkpoints", 2),
            ("episodes", 3),
            ("evaluations", 1),
            ("metrics", 4),
            ("promotions", 1),
        )
    ]


@pytest.mark.parametrize("place", ["metrics", "ix_metrics_run_id_name_agent_steps", "runs"])
@pytest.mark.parametrize("damage", ["a flipped bit", "a lost page"])
def test_a_damaged_file_is_found(tmp_path: Path, fill: Fill, place: str, damage: str) -> None:
    file = tmp_path / "mario.db"
    fill(str(file))
    connection = sqlite3.connect(file)
    [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [place])
    [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    data = bytearray(file.read_bytes())
    begin = (page - 1) * size
    if damage == "a lost page":
        data[begin : begin + size] = bytes(size)
    else:
        data[begin + 4] ^= 1  # of how many cells the page has
    file.write_bytes(data)
    state = check_database(str(file))
    assert state.problems
    assert any("damaged" in line or "malformed" in line for line in state.problems)
    assert state.rows["episodes"] == 6
    assert_lines(state.problems)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("change", "between"),
    [
        ("DELETE FROM promotions WHERE number = 1", "row 0 to row 2"),
        ("DELETE FROM promotions WHERE number = 3", "row 2 to row 4"),
        ("UPDATE promotions SET to_version = 9 WHERE number = 2", "row 3 to row 4"),
        ("UPDATE promotions SET to_version = NULL WHERE number = 2", "row 3 to row 4"),
        ("UPDATE promotions SET from_version = 9 WHERE number = 4", "row 3 to row 4"),
        ("UPDATE promotions SET from_version = NULL WHERE number = 4", "row 3 to row 4"),
        ("UPDATE promotions SET from_version = 2 WHERE number = 5", "row 4 to row 5"),
    ],
)
def test_a_gap_in_the_audit_is_found(url: str, change: str, between: str) -> None:
    with RunStore(url) as store:
        for alias in ("challenger", "champion"):
            store.add_promotion(promotion(None, 1, alias=alias))
            store.add_promotion(promotion(1, 2, alias=alias))
            store.add_promotion(promotion(2, 3, alias=alias, moved=False, verdict="failed"))
            store.add_promotion(promotion(2, None, alias=alias, event="changed"))
            store.add_promotion(promotion(None, 2, alias=alias, event="put back"))
    assert check_database(url).problems == []
    execute(url, f"{change} AND alias = 'champion'")
    assert check_database(url).problems == [
        f"the audit of mario-1-1-ppo@champion does not lead from {between}"
    ]


def test_an_audit_may_begin_with_a_refusal(url: str) -> None:
    """Of an alias that another program had set: its move is told of later, from nothing."""
    with RunStore(url) as store:
        store.add_promotion(promotion(5, 6, moved=False, verdict="failed"))
        store.add_promotion(promotion(None, 5, event="changed", verdict="unverified"))
        store.add_promotion(promotion(5, 6, verdict="forced"))
    assert check_database(url).problems == []


# export


@pytest.fixture(params=["parquet", "csv"])
def format(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows_of(url: str, run_id: str | None = None) -> dict[str, list[dict[str, object]]]:
    """All tables, or their rows of a run, in the order of their keys; nested values as JSON."""
    engine, _ = open_engine(url, 5)
    found = {}
    with engine.connect() as connection:
        for table in TABLES:
            rows = connection.execute(select(table).order_by(*table.primary_key))
            key = "id" if table.name == "runs" else "run_id"
            found[table.name] = [
                {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
                for row in rows.mappings()
                if run_id in (None, row[key])
            ]
    engine.dispose()
    return found


def exported(directory: Path, format: str) -> dict[str, list[dict[str, object]]]:
    if format == "parquet":
        return {
            table.name: pq.read_table(directory / f"{table.name}.parquet").to_pylist() for table in TABLES
        }
    found = {}
    for table in TABLES:
        with (directory / f"{table.name}.csv").open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found[table.name] = [
                {name: read(table.columns[name], value) for name, value in row.items()} for row in reader
            ]
            assert reader.fieldnames == list(table.columns.keys())
    return found


def read(column: Column[Any], value: str) -> object:
    """What a field of a CSV file says."""
    if value == "":
        return "" if not column.nullable else None
    match column.type:
        case UtcDateTime():
            return datetime.fromisoformat(value)
        case NanDouble() | Double():
            return float(value)
        case Boolean():
            return {"True": True, "False": False}[value]
        case Integer():
            return int(value)
        case _:
            return value


def utc(found: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
    """With the times in Python's UTC, not in another library's."""

    def plain(value: object) -> object:
        if isinstance(value, datetime):
            assert value.utcoffset() == timedelta(0)
            return value.astimezone(UTC)
        return value

    return {
        name: [{key: plain(value) for key, value in row.items()} for row in rows]
        for name, rows in found.items()
    }


def assert_same(
    found: dict[str, list[dict[str, object]]], expected: dict[str, list[dict[str, object]]]
) -> None:
    """Equal with its types, and what is no number too."""
    assert {name: [list(map(repr, row.items())) for row in rows] for name, rows in found.items()} == {
        name: [list(map(repr, row.items())) for row in rows] for name, rows in expected.items()
    }


def test_files_hold_what_the_tables_hold(
    url: str, fill: Fill, tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(url)
    monkeypatch.setattr("mario_dist.store.maintenance._CHUNK_ROWS", 2)
    out = tmp_path / "a" / "b"
    counts = {out / f"{table.name}.{format}": len(rows_of(url)[table.name]) for table in TABLES}
    assert export_database(url, out, format, None) == counts
    assert sorted(out.iterdir()) == sorted(counts)
    assert all(count >= 2 for count in counts.values())
    assert_same(utc(exported(out, format)), rows_of(url))
    # Again, over the files that are there.
    assert export_database(url, out, format, None) == counts
    assert_same(utc(exported(out, format)), rows_of(url))
    assert sorted(out.iterdir()) == sorted(counts)


def test_files_of_one_run_hold_only_its_rows(url: str, fill: Fill, tmp_path: Path, format: Any) -> None:
    fill(url)
    written = export_database(url, tmp_path / "out", format, "r2")
    assert {path.stem: count for path, count in written.items()} == {
        "runs": 1,
        "episodes": 3,
        "metrics": 4,
        "checkpoints": 2,
        "evaluations": 1,
        "promotions": 1,
    }
    assert_same(utc(exported(tmp_path / "out", format)), rows_of(url, "r2"))


def test_empty_tables_are_files_with_columns(url: str, tmp_path: Path, format: Any) -> None:
    upgrade_database(url)
    written = export_database(url, tmp_path / "out", format, None)
    assert {path.name: count for path, count in written.items()} == {f"{t.name}.{format}": 0 for t in TABLES}
    assert exported(tmp_path / "out", format) == {table.name: [] for table in TABLES}


def test_parquet_has_the_types_of_the_columns(url: str, tmp_path: Path) -> None:
    upgrade_database(url)
    export_database(url, tmp_path, "parquet", None)
    wanted = {
        UtcDateTime: pa.timestamp("us", tz="UTC"),
        NanDouble: pa.float64(),
        Double: pa.float64(),
        Boolean: pa.bool_(),
        Integer: pa.int64(),
    }
    for table in TABLES:
        schema = pq.read_schema(tmp_path / f"{table.name}.parquet")
        assert schema.names == list(table.columns.keys())
        for column in table.columns:
            kind = next((wanted[k] for k in wanted if isinstance(column.type, k)), pa.string())
            assert schema.field(column.name).type == kind, (table.name, column.name)
    assert any(isinstance(column.type, JSON) for table in TABLES for column in table.columns)


def test_more_rows_than_fit_in_memory_at_once_come_in_chunks(
    url: str, make_run: MakeRun, record: MakeRecord, tmp_path: Path, format: Any
) -> None:
    count = 10_001  # one more than a chunk
    with RunStore(url) as store:
        store.create_run(make_run("r1"))
        rows = Rows(metrics=[row for n in range(count) for row in metric_values(n, n / 3, {"loss": n / 7})])
        store.write("r1", rows)
    written = export_database(url, tmp_path / "out", format, None)
    path = tmp_path / "out" / f"metrics.{format}"
    assert written[path] == count
    if format == "parquet":
        assert pq.ParquetFile(path).num_row_groups == 2
    found = exported(tmp_path / "out", format)["metrics"]
    assert [(row["agent_steps"], row["value"]) for row in found] == [(n, n / 7) for n in range(count)]


def test_an_export_is_of_one_moment(
    url: str, make_run: MakeRun, record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transaction of another writer is in all files or in none."""
    monkeypatch.setattr("mario_dist.store.maintenance._CHUNK_ROWS", 50)
    ended = threading.Event()
    written = threading.Semaphore(0)

    def pairs(n: int) -> Rows:
        return Rows(episodes=[episode_values(n, record(n))], metrics=metric_values(n, 0.0, {"loss": 1.0}))

    with RunStore(url) as store:
        store.create_run(make_run("r1"))
        many = Rows()
        for n in range(2000):
            many.extend(pairs(n))
        store.write("r1", many)

        def write() -> None:
            n = 2000
            while not ended.is_set():
                store.write("r1", pairs(n))
                written.release()
                n += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(3):
                assert written.acquire(timeout=30)
                counts = {
                    path.stem: count
                    for path, count in export_database(url, tmp_path / "out", "csv", None).items()
                }
                assert counts["episodes"] == counts["metrics"] > 2000
        finally:
            ended.set()
            thread.join()


def test_an_old_or_missing_database_is_not_exported(url: str, make_run: MakeRun, tmp_path: Path) -> None:
    make_of_revision(url, "0001", make_run("r1"))
    with pytest.raises(UserError, match="not at the newest schema: run 'mario-dist db upgrade'"):
        export_database(url, tmp_path / "out", "csv", None)
    assert not (tmp_path / "out").exists()
    missing = tmp_path / "none" / "mario.db"
    with pytest.raises(UserError, match=f"there is no run database {missing}"):
        export_database(f"sqlite:///{missing}", tmp_path / "out", "csv", None)
    assert not missing.parent.exists()


def test_a_directory_that_cannot_be_written_is_one_line(fill: Fill, format: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="mario-dist-ro-") as folder:
        place = Path(folder)
        url = f"sqlite:///{place}/db/mario.db"
        fill(url)
        for path in (place / "db", *(place / "db").iterdir()):
            path.chmod(0o777)
        (place / "locked").mkdir(mode=0o555)
        (place / "file").write_text("")
        place.chmod(0o555)
        with unprivileged():
            for out, why in (
                (place / "locked", "Permission denied"),
                (place / "locked" / "out", "Permission denied"),
                (place / "file", "File exists"),
                (place / "file" / "out", "Not a directory"),
            ):
                with pytest.raises(UserError, match=f"cannot write to {out}: ") as caught:
                    export_database(url, out, format, None)
                assert why in str(caught.value)
                assert_lines([str(caught.value)])
        assert list((place / "locked").iterdir()) == []
        place.chmod(0o755)


@pytest.mark.parametrize("kind", ["disk", "quota"])
def test_a_full_disk_leaves_no_half_of_a_file(
    fill: Fill, tmp_path: Path, format: Any, kind: str, make_run: MakeRun
) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"
    fill(url)
    with RunStore(url) as store:
        rows = Rows(metrics=[row for n in range(20_000) for row in metric_values(n, n / 3, {"loss": n / 7})])
        store.write("r1", rows)
    out = tmp_path / "out"
    out.mkdir()
    with small_disk(out, 128 * 1024) if kind == "disk" else largest_file(128 * 1024):
        with pytest.raises(UserError, match=f"cannot write to {out}: ") as caught:
            export_database(url, out, format, None)
        assert_lines([str(caught.value)])
        assert sorted(path.name for path in out.iterdir()) == sorted(
            f"{name}.{format}" for name in ("runs", "checkpoints", "episodes", "evaluations")
        )


def assert_lines(texts: list[str]) -> None:
    for line in texts:
        assert "\n" not in line
        assert len(line) < 400
