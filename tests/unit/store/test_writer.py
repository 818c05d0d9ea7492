import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from mario_dist.store import RunRow, RunStore, StoreUnavailable, StoreWriter
from mario_dist.types import EpisodeRecord

MakeRun = Callable[..., RunRow]
MakeRecord = Callable[..., EpisodeRecord]


def test_close_makes_thousands_of_rows_durable(
    store: RunStore, url: str, make_run: MakeRun, record: MakeRecord
) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", capacity=64) as writer:
        for n in range(3000):
            writer.episodes(n, [record(2 * n), record(2 * n + 1)])
            if n % 3 == 0:
                writer.metrics(n, n / 10, {"loss": 1.0, "kl": 0.1})
    with RunStore(url) as other:
        assert [row["sequence"] for row in other.episodes("r1")] == list(range(6000))
        assert len(other.metrics("r1")) == 2000


def test_flush_waits_until_others_can_read_it(
    store: RunStore, url: str, make_run: MakeRun, record: MakeRecord
) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", linger_s=60) as writer, RunStore(url) as other:
        started = time.monotonic()
        for n in range(3):
            writer.episodes(n, [record(n)])
            writer.flush()
            assert other.episode_summary("r1")["count"] == n + 1
        writer.flush()
        assert time.monotonic() - started < 30  # a flush does not wait for more work


def test_rows_arrive_without_a_flush(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", linger_s=0.01) as writer:
        writer.episodes(1, [record(0)])
        deadline = time.monotonic() + 20
        while not store.episodes("r1"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_is_queued_is_a_copy(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    records, values = [record(0)], {"loss": 1.0}
    with StoreWriter(store, "r1") as writer:
        writer.episodes(1, records)
        writer.metrics(1, 0.0, values)
        records.clear()
        values["loss"] = 2.0
        writer.flush()
    assert len(store.episodes("r1")) == 1
    assert store.metrics("r1")[0]["value"] == 1.0


def test_a_write_that_fails_is_raised_by_every_later_call(store: RunStore, record: MakeRecord) -> None:
    writer = StoreWriter(store, "no-such-run")
    writer.episodes(1, [record(0)])
    with pytest.raises(IntegrityError):
        writer.flush()
    with pytest.raises(IntegrityError):
        writer.episodes(2, [record(1)])
    with pytest.raises(IntegrityError):
        writer.metrics(2, 0.0, {"loss": 1.0})
    with pytest.raises(IntegrityError):
        writer.close()


def test_a_database_that_stays_away_is_raised_after_the_retries(tmp_path: Path, make_run: MakeRun) -> None:
    with RunStore(str(tmp_path / "mario.db"), busy_timeout_s=0.05) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        writer = StoreWriter(store, "r1", retry_s=(0.01, 0.01))
        writer.metrics(1, 0.0, {"loss": 1.0})
        with pytest.raises(StoreUnavailable, match="database is locked"):
            writer.close()
        holder.close()


def test_a_database_that_comes_back_gets_every_row_once(
    tmp_path: Path, make_run: MakeRun, record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    with RunStore(str(tmp_path / "mario.db"), busy_timeout_s=0.05) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with StoreWriter(store, "r1", linger_s=0, retry_s=(0.05,) * 200) as writer:
            writer.episodes(1, [record(0)])
            while "trying again" not in caplog.text:
                time.sleep(0.01)
            writer.episodes(2, [record(1)])
            holder.execute("ROLLBACK")
        holder.close()
        assert [row["sequence"] for row in store.episodes("r1")] == [0, 1]


def test_a_server_that_drops_its_connections_loses_nothing(
    postgres_database: str, make_run: MakeRun, record: MakeRecord
) -> None:
    admin = create_engine(postgres_database, isolation_level="AUTOCOMMIT")
    drop_the_others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with RunStore(postgres_database) as store, admin.connect() as connection:
        store.create_run(make_run("r1"))
        with StoreWriter(store, "r1", linger_s=0) as writer:
            for n in range(60):
                writer.episodes(n, [record(n)])
                if n % 20 == 10:
                    connection.execute(drop_the_others)
                time.sleep(0.005)
        assert [row["sequence"] for row in store.episodes("r1")] == list(range(60))
    admin.dispose()


def test_a_full_queue_holds_the_caller_back(tmp_path: Path, make_run: MakeRun) -> None:
    with RunStore(str(tmp_path / "mario.db")) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with StoreWriter(store, "r1", capacity=4, linger_s=0) as writer:
            sent = 0

            def send() -> None:
                nonlocal sent
                for step in range(40):
                    writer.metrics(step, 0.0, {"loss": 1.0})
                    sent += 1

            sender = threading.Thread(target=send)
            sender.start()
            time.sleep(0.3)
            assert sent <= 8  # the queue, and the batch that waits for the lock
            holder.execute("ROLLBACK")
            sender.join(timeout=30)
            assert sent == 40
        holder.close()
        assert len(store.metrics("r1")) == 40


def test_a_closed_writer_takes_nothing(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    writer = StoreWriter(store, "r1")
    writer.close()
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.episodes(1, [record(0)])


WRITE_FOREVER = """
import sys
from mario_dist.store import RunRow, RunStore, StoreWriter
from mario_dist.types import Episode, EpisodeRecord

def record(n):
    episode = Episode(0, "1-1", 1, 1, 1.0, 9, 40, 0, 0, 400, 2, "small", False, "death", 0.1)
    return EpisodeRecord(0, 0, n, 1, episode)

store = RunStore(sys.argv[1])
run = RunRow(id="r1", name="", seed=0, total_steps=1, level="1-1", algo="ppo", config={}, directory="d")
store.create_run(run)
writer = StoreWriter(store, "r1", linger_s=0)
n = 0
while True:
    for _ in range(50):
        writer.episodes(n, [record(n)])
        n += 1
    writer.flush()
    print(n, flush=True)
    for _ in range(50):
        writer.episodes(n, [record(n)])
        n += 1
"""


def test_a_killed_process_loses_only_what_was_not_flushed(url: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    flushed = 0
    for _ in range(5):
        flushed = int(process.stdout.readline())
    process.kill()
    rest, _ = process.communicate(timeout=30)
    flushed = max([flushed, *(int(line) for line in rest.split("\n")[:-1])])
    with RunStore(url) as store:
        sequences = [row["sequence"] for row in store.episodes("r1")]
        assert len(sequences) >= flushed
        assert sequences == list(range(len(sequences)))  # a prefix: no hole and no half batch
        assert store.get_run("latest").status == "running"
        with StoreWriter(store, "r1") as writer:  # and the database takes new rows
            writer.metrics(10**6, 1.0, {"loss": 0.0})
        assert len(store.metrics("r1")) == 1
