import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, delete
from support.servers import drop_connections
from support.store import promotion
from support.together import run_together

from mario_dist.errors import UserError
from mario_dist.store import RunRow, RunStore, check_database, tables
from mario_dist.store.engine import open_engine

MakeRun = Callable[..., RunRow]

ALIAS = "mario-1-1-ppo@champion"


def test_a_row_comes_back_as_it_was_stored(store: RunStore, make_run: MakeRun) -> None:
    store.create_run(make_run("r1"))
    full = promotion(
        1,
        2,
        actor="ada@laptop",
        reason="größer\nund schneller",
        run_id="r1",
        report={"clear_rate": 0.5, "x": {"mean": np.float32(1.5)}},
        at=datetime(2026, 3, 1, 4, 5, 6, 789, tzinfo=UTC),
    )
    bare = promotion(2, None, event="changed", verdict="unverified")
    stored = [store.add_promotion(full), store.add_promotion(bare)]
    assert [row.number for row in stored] == [1, 2]
    assert store.promotions() == stored
    assert stored[0] == dataclasses.replace(full, number=1)
    assert stored[1] == dataclasses.replace(bare, number=2)


def test_each_alias_of_each_model_is_numbered_by_itself(store: RunStore) -> None:
    places = [("a", "champion"), ("a", "challenger"), ("b", "champion")]
    for n in range(1, 4):
        for model, alias in places:
            assert store.add_promotion(promotion(n - 1, n, model=model, alias=alias, number=77)).number == n
    assert [row.number for row in store.promotions("a", "champion")] == [1, 2, 3]
    assert [(row.alias, row.number) for row in store.promotions("a")] == [
        (alias, n) for n in range(1, 4) for alias in ("champion", "challenger")
    ]
    assert len(store.promotions(alias="champion")) == 6
    assert len(store.promotions()) == 9
    assert store.promotions("c") == store.promotions("a", "other") == []


def test_a_clock_that_goes_back_does_not_change_the_order_of_an_alias(store: RunStore) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for n in range(1, 4):
        store.add_promotion(promotion(n - 1, n, at=noon - timedelta(minutes=n)))
    assert [row.to_version for row in store.promotions("mario-1-1-ppo", "champion")] == [1, 2, 3]


def test_a_run_is_kept_as_long_as_the_store_has_it(store: RunStore, url: str, make_run: MakeRun) -> None:
    store.create_run(make_run("r1"))
    store.create_run(make_run("r2"))
    assert store.add_promotion(promotion(None, 1, run_id="r1")).run_id == "r1"
    assert store.add_promotion(promotion(1, 2, run_id="r2")).run_id == "r2"
    assert store.add_promotion(promotion(2, 3, run_id="of-another-store")).run_id is None
    assert store.add_promotion(promotion(3, 4, run_id="r")).run_id is None  # a prefix is no id
    before = store.promotions()
    engine, _ = open_engine(url, 5)
    with engine.begin() as connection:
        connection.execute(delete(tables.runs).where(tables.runs.c.id == "r1"))
    engine.dispose()
    assert store.promotions() == [dataclasses.replace(before[0], run_id=None), *before[1:]]
    assert [row.run_id for row in before] == ["r1", "r2", None, None]


ADD = """
import sys
from mario_dist.store import PromotionRow, RunStore

url, name, actor, count = sys.argv[1:]
model, _, alias = name.partition("@")
with RunStore(url) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(count)):
        with store.exclusive(name):
            rows = store.promotions(model, alias)
            held = rows[-1].to_version if rows else None
            store.add_promotion(PromotionRow(
                model=model, alias=alias, event="promote", actor=actor, from_version=held,
                to_version=1 if held is None else held + 1, moved=True, verdict="passed", registry="here",
            ))
"""


def test_processes_that_promote_at_once_come_one_after_the_other(url: str, store: RunStore) -> None:
    actors, count = ("ada", "bob"), 15
    run_together(ADD, [(url, ALIAS, actor, str(count)) for actor in actors])
    rows = store.promotions()
    assert [row.number for row in rows] == [row.to_version for row in rows] == list(range(1, 2 * count + 1))
    assert [row.from_version for row in rows] == [None, *range(1, 2 * count)]
    assert [sum(row.actor == actor for row in rows) for actor in actors] == [count, count]
    assert check_database(url).problems == []


HOLD = """
import sys
from mario_dist.store import RunStore

with RunStore(sys.argv[1]) as store, store.exclusive(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_by_another(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a name until its standard input ends."""
    command = [sys.executable, "-c", HOLD, url, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def assert_busy(store: RunStore) -> None:
    started = time.monotonic()
    said = f"another process has been busy with {ALIAS}"
    with pytest.raises(UserError, match=said) as caught, store.exclusive(ALIAS, timeout_s=0.2):
        pytest.fail("it was free")
    assert 0.2 <= time.monotonic() - started < 5
    assert "\n" not in str(caught.value)


def test_what_another_process_holds_is_refused_in_one_line_and_the_database_is_written_meanwhile(
    url: str, make_run: MakeRun
) -> None:
    # A store of the shortest patience: a write that had to wait would fail.
    with RunStore(url, busy_timeout_s=0.2) as store, held_by_another(url, ALIAS) as holder:
        assert_busy(store)
        started = time.monotonic()
        store.create_run(make_run("r1"))
        store.add_metrics("r1", 1, 0.5, {"loss": 1.0})
        assert store.add_promotion(promotion(None, 1)).number == 1
        assert len(store.metrics("r1")) == 1
        assert time.monotonic() - started < 5
        assert_busy(store)
        assert holder.poll() is None


def test_a_holder_that_ends_lets_go(url: str, store: RunStore) -> None:
    with held_by_another(url, ALIAS) as holder:
        assert_busy(store)
        assert holder.stdin is not None
        threading.Timer(0.3, holder.stdin.close).start()
        with store.exclusive(ALIAS, timeout_s=30):  # waits for it
            assert holder.stdin.closed


def test_a_holder_that_is_killed_lets_go(url: str, store: RunStore) -> None:
    with held_by_another(url, ALIAS) as holder:
        assert_busy(store)
        holder.kill()  # SIGKILL
        holder.wait()
        with store.exclusive(ALIAS, timeout_s=10):
            pass


def test_a_failure_lets_go_and_threads_exclude_each_other(store: RunStore) -> None:
    with pytest.raises(UserError, match="refused"), store.exclusive(ALIAS):
        raise UserError("refused")
    with store.exclusive(ALIAS):
        pass
    holds, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with store.exclusive(ALIAS):
            holds.set()
            ended.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holds.wait(10)
        assert_busy(store)
    finally:
        ended.set()
        thread.join()
    with store.exclusive(ALIAS, timeout_s=1):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with RunStore(str(tmp_path / "mario.db")) as store:
        (tmp_path / "mario.db.lock").mkdir()
        said = r"cannot lock .*mario\.db\.lock: Is a directory"
        with pytest.raises(UserError, match=said) as caught, store.exclusive(ALIAS):
            pytest.fail("it was free")
        assert "\n" not in str(caught.value)


def test_a_holder_that_the_server_dropped_is_told(
    postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one may hold the name by then; what was done under it is done all the same."""
    admin = create_engine(postgres_database, isolation_level="AUTOCOMMIT")
    with RunStore(postgres_database) as store, admin.connect() as connection:
        with store.exclusive(ALIAS):
            drop_connections(connection)
        assert "was lost with its connection" in caplog.text
        with store.exclusive(ALIAS, timeout_s=10):
            pass
    admin.dispose()
