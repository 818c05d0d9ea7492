import csv
import json
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import JSON, Boolean, Column, Double, Integer, select
from support.disks import largest_file, small_disk, unprivileged
from support.store import assert_lines, make_of_revision

from mario_dist.errors import UserError
from mario_dist.store import RunRow, RunStore, export_database, tables, upgrade_database
from mario_dist.store.engine import open_engine
from mario_dist.store.rows import Rows, episode_values, metric_values
from mario_dist.store.tables import NanDouble, UtcDateTime
from mario_dist.types import EpisodeRecord

MakeRun = Callable[..., RunRow]
MakeRecord = Callable[..., EpisodeRecord]
Fill = Callable[[str], None]

TABLES = tables.metadata.sorted_tables


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
