import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from support.servers import drop_connections

from mario_dist.errors import UserError
from mario_dist.store import CheckpointRow, RunRow, RunStore, StoreWriter, replay
from mario_dist.store.journal import Journal, segments
from mario_dist.store.rows import Rows, episode_values
from mario_dist.types import EpisodeRecord

MakeRun = Callable[..., RunRow]
MakeRecord = Callable[..., EpisodeRecord]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "r1" / "journal"


def test_close_makes_thousands_of_rows_durable(
    store: RunStore, url: str, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", journal) as writer:
        for n in range(3000):
            writer.episodes(n, [record(2 * n), record(2 * n + 1)])
            if n % 3 == 0:
                writer.metrics(n, n / 10, {"loss": 1.0, "kl": 0.1})
    with RunStore(url) as other:
        assert [row["sequence"] for row in other.episodes("r1")] == list(range(6000))
        assert len(other.metrics("r1")) == 2000


def test_flush_waits_until_others_can_read_it(
    store: RunStore, url: str, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", journal, linger_s=60) as writer, RunStore(url) as other:
        started = time.monotonic()
        for n in range(3):
            writer.episodes(n, [record(n)])
            writer.flush()
            assert other.episode_summary("r1")["count"] == n + 1
        writer.flush()
        assert time.monotonic() - started < 30  # a flush does not wait for more work


def test_rows_arrive_without_a_flush(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    with StoreWriter(store, "r1", journal, linger_s=0.01) as writer:
        writer.episodes(1, [record(0)])
        deadline = time.monotonic() + 20
        while not store.episodes("r1"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_is_queued_is_a_copy(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    records, values = [record(0)], {"loss": 1.0}
    with StoreWriter(store, "r1", journal) as writer:
        writer.episodes(1, records)
        writer.metrics(1, 0.0, values)
        records.clear()
        values["loss"] = 2.0
        writer.flush()
    assert len(store.episodes("r1")) == 1
    assert store.metrics("r1")[0]["value"] == 1.0


def test_a_write_that_fails_is_raised_by_every_later_call(
    store: RunStore, record: MakeRecord, journal: Path
) -> None:
    writer = StoreWriter(store, "no-such-run", journal)
    writer.episodes(1, [record(0)])
    with pytest.raises(IntegrityError):
        writer.flush()
    with pytest.raises(IntegrityError):
        writer.episodes(2, [record(1)])
    with pytest.raises(IntegrityError):
        writer.metrics(2, 0.0, {"loss": 1.0})
    with pytest.raises(IntegrityError):
        writer.close()


def test_while_the_database_is_away_rows_are_kept_on_disk_for_later(
    tmp_path: Path, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    with RunStore(str(tmp_path / "mario.db"), busy_timeout_s=0.05) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        writer = StoreWriter(store, "r1", journal, patience_s=0.5)
        writer.metrics(1, 0.0, {"loss": math.nan})
        writer.episodes(1, [record(0, episode_return=0.1 + 0.2)])
        writer.checkpoint(CheckpointRow(agent_steps=1, path="step-1", kind="latest", evaluation={"x": 1.5}))
        writer.run(status="stopped", agent_steps=1, ended_at=datetime(2026, 1, 2, tzinfo=UTC))
        assert not writer.close()
        holder.execute("ROLLBACK")
        holder.close()
        assert store.episodes("r1") == []
        assert replay(store, "r1", journal) == 4
        assert replay(store, "r1", journal) == 0
        assert not journal.exists()
        assert math.isnan(store.metrics("r1")[0]["value"])
        assert [row["episode_return"] for row in store.episodes("r1")] == [0.1 + 0.2]
        assert store.checkpoints("r1")[0].evaluation == {"x": 1.5}
        run = store.get_run("r1")
        assert (run.status, run.agent_steps) == ("stopped", 1)
        assert run.ended_at == datetime(2026, 1, 2, tzinfo=UTC)


def test_a_database_that_comes_back_gets_every_row_once(
    tmp_path: Path,
    make_run: MakeRun,
    record: MakeRecord,
    journal: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RunStore(str(tmp_path / "mario.db"), busy_timeout_s=0.05) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with StoreWriter(store, "r1", journal, linger_s=0, backoff_s=(0.05, 0.1)) as writer:
            writer.episodes(1, [record(0)])
            while "rows wait in" not in caplog.text:
                time.sleep(0.01)
            started = time.monotonic()
            for n in range(1, 2001):
                writer.episodes(2, [record(n)])
            writer.flush()  # does not wait for the database
            assert time.monotonic() - started < 5
            holder.execute("ROLLBACK")
        holder.close()
        assert "is back" in caplog.text
        assert [row["sequence"] for row in store.episodes("r1")] == list(range(2001))
        assert not journal.exists()


def test_a_writer_brings_what_an_earlier_one_left(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    left = Journal(journal)
    left.append(Rows(episodes=[episode_values(1, record(0))]))
    left.append(Rows(episodes=[episode_values(1, record(1))]))
    with StoreWriter(store, "r1", journal) as writer:
        writer.episodes(2, [record(1), record(2)])
    assert [row["sequence"] for row in store.episodes("r1")] == [0, 1, 2]


def test_a_journal_of_a_run_that_is_not_there_is_kept(
    store: RunStore, record: MakeRecord, journal: Path
) -> None:
    Journal(journal).append(Rows(episodes=[episode_values(1, record(0))]))
    with pytest.raises(UserError, match="there is no run 'r1'"):
        replay(store, "r1", journal)
    assert len(segments(journal)) == 1


def test_a_journal_of_a_run_whose_id_only_begins_another_is_kept(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r12"))
    Journal(journal).append(Rows(episodes=[episode_values(1, record(0))]))
    with pytest.raises(UserError, match="there is no run 'r1' in "):
        replay(store, "r1", journal)
    assert len(segments(journal)) == 1


def test_a_server_that_drops_its_connections_loses_nothing(
    postgres_database: str, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    admin = create_engine(postgres_database, isolation_level="AUTOCOMMIT")
    with RunStore(postgres_database) as store, admin.connect() as connection:
        store.create_run(make_run("r1"))
        with StoreWriter(store, "r1", journal, linger_s=0) as writer:
            for n in range(60):
                writer.episodes(n, [record(n)])
                if n % 20 == 10:
                    drop_connections(connection)
                time.sleep(0.005)
        assert [row["sequence"] for row in store.episodes("r1")] == list(range(60))
    admin.dispose()


def test_a_closed_writer_takes_nothing(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    writer = StoreWriter(store, "r1", journal)
    writer.close()
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.episodes(1, [record(0)])


WRITE_UNTIL_KILLED = """
import os, sys
from pathlib import Path
from mario_dist.store import RunStore, StoreWriter
from mario_dist.types import Episode, EpisodeRecord

url, journal = sys.argv[1], Path(sys.argv[2])

def write_for_ever(incarnation):
    def record(n):
        episode = Episode(0, "1-1", 1, 1, 1.0, 9, 40, 0, 0, 400, 2, "small", False, "death", 0.1)
        return EpisodeRecord(0, incarnation, n, 1, episode)

    writer = StoreWriter(RunStore(url), "r1", journal, linger_s=0.002)
    n = 0
    while True:
        for _ in range(20):
            writer.episodes(n, [record(n)])
            n += 1
            os.write(1, b"%d\\n" % n)  # print() may be killed before the end of its line
        writer.flush()

# The imports are paid for once; a child begins with nothing open.
for line in sys.stdin:
    if not (child := os.fork()):
        write_for_ever(int(line))
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""
KILLS = 20


def test_a_killed_writer_loses_and_doubles_nothing(
    url: str, store: RunStore, make_run: MakeRun, journal: Path
) -> None:
    """Every row that a call accepted is in the database or in the journal, whenever the process is killed."""
    store.create_run(make_run("r1"))
    pause = random.Random(8)
    left = 0
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, url, str(journal)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    for incarnation in range(KILLS):
        process.stdin.write(f"{incarnation}\n")
        process.stdin.flush()
        lines: list[str] = []
        while not any(line.startswith("child") for line in lines) or len(lines) < 2:  # both processes write
            lines.append(process.stdout.readline())
        child = next(int(line.split()[1]) for line in lines if line.startswith("child"))
        time.sleep(pause.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        while lines[-1] != "dead\n":
            lines.append(process.stdout.readline())
        accepted = max(int(line) for line in lines if line[:-1].isdecimal())
        stored = sum(row["incarnation"] == incarnation for row in store.episodes("r1"))
        left += stored < accepted
        if incarnation % 2:  # else the next process brings it
            replay(store, "r1", journal)
            sequences = [row["sequence"] for row in store.episodes("r1") if row["incarnation"] == incarnation]
            assert sequences == list(range(len(sequences)))  # no hole, none twice
            assert accepted <= len(sequences) <= accepted + 1  # the call that was killed
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert left > 0  # some kills came before the database had what was accepted
    replay(store, "r1", journal)
    keys = [(row["incarnation"], row["sequence"]) for row in store.episodes("r1")]
    assert len(keys) == len(set(keys)) == store.episode_summary("r1")["count"]
    for incarnation in range(KILLS):
        of_it = [sequence for i, sequence in keys if i == incarnation]
        assert of_it == list(range(len(of_it)))


def test_a_database_that_hangs_is_waited_for_once(
    postgres_database: str, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    holder = create_engine(postgres_database)
    with RunStore(postgres_database) as store, holder.connect() as connection:
        store.create_run(make_run("r1"))
        connection.execute(text("LOCK TABLE episodes"))
        with StoreWriter(store, "r1", journal, linger_s=0, patience_s=0.5) as writer:
            started = time.monotonic()
            for n in range(5):
                writer.episodes(n, [record(n)])
                writer.flush()
            assert 0.5 <= time.monotonic() - started < 2.0
            connection.rollback()
            while len(store.episodes("r1")) < 5:
                time.sleep(0.01)
    holder.dispose()


def test_rows_that_a_database_refuses_are_named_and_kept(
    store: RunStore, make_run: MakeRun, record: MakeRecord, journal: Path
) -> None:
    store.create_run(make_run("r1"))
    broken = {**episode_values(1, record(0)), "level": None}
    Journal(journal).append(Rows(episodes=[broken]))
    with pytest.raises(UserError, match=r"refuses rows of .*00000001\.jsonl"):
        replay(store, "r1", journal)
    assert len(segments(journal)) == 1
