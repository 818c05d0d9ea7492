import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, inspect, text
from support.store import assert_lines, make_of_revision, promotion

from mario_dist.errors import UserError
from mario_dist.store import RunRow, RunStore, check_database, tables, upgrade_database
from mario_dist.store.engine import open_engine
from mario_dist.store.schema import HEAD

MakeRun = Callable[..., RunRow]
Fill = Callable[[str], None]


def execute(url: str, *statements: Any, foreign_keys: bool = True) -> None:
    engine, _ = open_engine(url, 5)
    with engine.connect() as connection:
        if not foreign_keys:
            connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[union-attr]
        with connection.begin():
            for statement in statements:
                connection.execute(text(statement) if isinstance(statement, str) else statement)
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
