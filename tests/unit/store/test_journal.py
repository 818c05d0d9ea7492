import dataclasses
import json
import math
import os
import random
import sqlite3
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from support.disks import largest_file, small_disk, unprivileged

from mario_dist.errors import UserError
from mario_dist.store import CheckpointRow, RunRow, RunStore, StoreUnavailable, StoreWriter, replay
from mario_dist.store.journal import Journal, read_segment, segments
from mario_dist.store.rows import Rows, metric_values, row_values

MakeRun = Callable[..., RunRow]

ODD_NAME = "J*-M/é"
"""Of characters that one bit makes the end of a line of."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "r1" / "journal"


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mario_dist.store.journal.SEGMENT_BYTES", 1000)


def metric(n: int, value: float = 1.0, name: str = ODD_NAME) -> Rows:
    return Rows(metrics=metric_values(n, n / 3, {name: value}))


def lines(directory: Path) -> list[Rows | None]:
    return [rows for path in segments(directory) for rows in read_segment(path)]


def written(directory: Path, *all_rows: Rows) -> Path:
    """The one segment of a journal with these lines."""
    journal = Journal(directory)
    for rows in all_rows:
        journal.append(rows)
    journal.close()
    [path] = segments(directory)
    return path


def test_lines_come_back_in_their_order_over_processes(directory: Path) -> None:
    for first in (0, 10, 20):
        journal = Journal(directory)
        for n in range(first, first + 10):
            journal.append(metric(n))
        if first != 10:  # which was killed
            journal.close()
    assert lines(directory) == [metric(n) for n in range(30)]
    assert len(segments(directory)) == 3


def test_a_journal_that_is_empty_leaves_no_folder(directory: Path) -> None:
    journal = Journal(directory)
    assert directory.is_dir()
    assert journal.sealed() == []
    journal.close()
    journal.close()
    assert not directory.exists()


def test_a_line_that_was_cut_anywhere_was_never_accepted(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(directory, metric(1), metric(2), metric(3))
    content = path.read_bytes()
    begin = content[:-1].rindex(b"\n") + 1
    for end in range(begin, len(content)):
        path.write_bytes(content[:end])
        assert list(read_segment(path)) == [metric(1), metric(2)]
    journal = Journal(directory)  # the next process does not go on in the middle of a line
    journal.append(metric(4))
    assert lines(directory) == [metric(1), metric(2), metric(4)]
    assert caplog.text == ""


def test_a_flipped_bit_costs_its_own_line(directory: Path) -> None:
    path = written(directory, metric(1), metric(2), metric(3))
    content = path.read_bytes()
    begin = content.index(b"\n") + 1
    end = content.index(b"\n", begin)
    for position in range(begin, end):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            good = [rows for rows in read_segment(path) if rows is not None]
            assert good == [metric(1), metric(3)], (position, bit)
    # Without its end, it and the next are one line.
    path.write_bytes(content[:end] + b"\x0b" + content[end + 1 :])
    assert list(read_segment(path)) == [metric(1), None]


def test_a_damaged_segment_is_set_aside_and_its_good_lines_are_kept(
    store: RunStore, make_run: MakeRun, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_run(make_run("r1"))
    for first in (10, 20):
        journal = Journal(directory)
        for n in range(first, first + 3):
            journal.append(metric(n))
        journal.seal()
    first_path, _ = segments(directory)
    content = bytearray(first_path.read_bytes())
    content[content.index(b"\n") + 20] ^= 4
    first_path.write_bytes(content)
    assert replay(store, "r1", directory) == 5
    assert [row["agent_steps"] for row in store.metrics("r1")] == [10, 12, 20, 21, 22]
    [aside] = directory.iterdir()
    assert aside.suffix == ".damaged"
    assert aside.read_bytes() == content
    [warning] = caplog.records
    assert "1 line(s) are damaged" in warning.getMessage()
    assert str(aside) in warning.getMessage()
    # It is out of the way of the run's later processes, and no later damage takes its place.
    with StoreWriter(store, "r1", directory) as writer:
        writer.metrics(30, 0.0, {"loss": 1.0})
    assert store.metrics("r1")[-1]["agent_steps"] == 30
    later = Journal(directory)
    later.append(metric(40))
    later.seal()
    [later_path] = segments(directory)
    assert later_path.stem > aside.stem


def test_the_good_lines_of_a_damaged_segment_bear_the_absence_of_the_database(
    tmp_path: Path, make_run: MakeRun, directory: Path
) -> None:
    path = written(directory, metric(1), metric(2), metric(3))
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"agent_steps":2', b'"agent_steps":3'))
    with RunStore(str(tmp_path / "mario.db"), busy_timeout_s=0.05) as store:
        store.create_run(make_run("r1"))
        holder = sqlite3.connect(tmp_path / "mario.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            replay(store, "r1", directory)
        holder.close()
        assert replay(store, "r1", directory) == 2
        assert [row["agent_steps"] for row in store.metrics("r1")] == [1, 3]


def test_every_bit_of_a_float_comes_back(directory: Path) -> None:
    number = random.Random(3)
    bits = [struct.unpack("<d", number.randbytes(8))[0] for _ in range(500)]
    values = [*bits, 0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    written(directory, *(metric(n, value) for n, value in enumerate(values)))
    back = [rows.metrics[0]["value"] for rows in lines(directory) if rows is not None]
    for value, found in zip(values, back, strict=True):
        assert isinstance(found, float)
        assert struct.pack("<d", found) == struct.pack("<d", value) or (
            math.isnan(value) and math.isnan(found)
        )


def test_times_text_and_nested_values_come_back(directory: Path) -> None:
    elsewhere = timezone(timedelta(hours=-3, minutes=-30))
    texts = ["Größe 马里奥 🍄", "line\nline\r\n\x0b\x85\u2028", "", 'quote " and \\', "\x00\x7f"]
    nested = {"x": [1, 2.5, None, True, {"Ω": texts}], "number": 2**60, "end": "2026-01-02T03:04:05"}
    checkpoints = [
        CheckpointRow(
            agent_steps=2**40 + n,
            path=f"/r1/{text}",
            kind="best",
            evaluation=nested if n else None,
            created_at=datetime(2026, 3, 1, 4, 5, 6, n, tzinfo=elsewhere if n else UTC),
        )
        for n, text in enumerate(texts)
    ]
    rows = Rows(
        checkpoints=[row_values(row) for row in checkpoints],
        run={
            "status": "stopped",
            "ended_at": datetime(2026, 3, 1, 4, 5, 6, 999_999, tzinfo=UTC),
            "config": nested,
            "git_commit": None,
        },
    )
    running = Rows(run={"status": "running", "ended_at": None})
    written(directory, rows, running)
    assert lines(directory) == [rows, running]
    [back, _] = lines(directory)
    assert back is not None
    assert [CheckpointRow(**values) for values in back.checkpoints] == checkpoints  # type: ignore[arg-type]


def test_numpy_scalars_come_back_as_numbers(directory: Path) -> None:
    evaluation = {"rate": np.float32(0.5), "n": np.int64(3), "best": np.bool_(True)}
    row = CheckpointRow(agent_steps=1, path="p", kind="best", evaluation=evaluation)
    written(directory, Rows(checkpoints=[row_values(row)]))
    [back] = lines(directory)
    assert back is not None
    assert json.dumps(back.checkpoints[0]["evaluation"]) == '{"rate": 0.5, "n": 3, "best": true}'


@pytest.mark.usefixtures("small_segments")
def test_segments_end_where_they_are_long_enough(directory: Path) -> None:
    journal = Journal(directory)
    rows = [metric(n) for n in range(100)]
    for row in rows:
        journal.append(row)
    found = segments(directory)
    assert journal.sealed() == found[:-1]
    assert all(1000 <= path.stat().st_size < 1200 for path in found[:-1])
    assert len(found) > 5
    journal.seal()
    assert journal.sealed() == found
    assert lines(directory) == rows
    found[0].unlink()  # as one that the database has
    journal.append(metric(100))
    assert journal.sealed() == found[1:]
    assert lines(directory)[-1] == metric(100)


def test_a_segment_that_is_just_being_opened_is_not_sealed(directory: Path) -> None:
    journal = Journal(directory)
    path = directory / "00000001.jsonl"
    os.mkfifo(path)  # which is there, but whose opening takes until somebody reads it
    appender = threading.Thread(target=journal.append, args=(metric(1),), daemon=True)
    appender.start()
    time.sleep(0.05)
    assert journal.sealed() == []
    with path.open("rb") as reader:
        appender.join()
        assert journal.sealed() == []
        journal.seal()
        assert journal.sealed() == [path]
        assert reader.read().endswith(b"}]}\n")


def test_a_segment_is_not_read_before_it_is_sealed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment at which the other thread asks: what is read is removed."""
    monkeypatch.setattr("mario_dist.store.journal.SEGMENT_BYTES", 150)  # a line or two
    journal = Journal(directory)
    count = 1500
    read: list[object] = []
    ended = threading.Event()

    def take() -> Iterator[object]:
        for path in journal.sealed():
            for rows in read_segment(path):
                assert rows is not None
                yield rows.metrics[0]["agent_steps"]
            path.unlink()

    def read_all() -> None:
        while not ended.is_set():
            read.extend(take())

    reader = threading.Thread(target=read_all)
    reader.start()
    for n in range(count):
        journal.append(metric(n))
    journal.seal()
    ended.set()
    reader.join()
    read.extend(take())
    assert read == list(range(count))


@pytest.mark.parametrize("kind", ["disk", "quota"])
def test_a_full_disk_is_one_line_and_loses_nothing_that_was_accepted(tmp_path: Path, kind: str) -> None:
    def fill(journal: Journal, rows: list[Rows]) -> str:
        """Append until the disk is full, with lines of several lengths."""
        while True:
            row = metric(len(rows), name="x" * (len(rows) * 7919 % 500))
            try:
                journal.append(row)
            except UserError as error:
                return str(error)
            rows.append(row)

    rows: list[Rows] = []
    full = small_disk(tmp_path, 64 * 1024) if kind == "disk" else largest_file(64 * 1024)
    with full:
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(20_000))
        journal = Journal(tmp_path / "journal")
        for _ in range(3):
            said = fill(journal, rows)
            assert said.startswith(f"cannot write the run's journal {tmp_path / 'journal'}: ")
            assert said.endswith("No space left on device" if kind == "disk" else "File too large")
            assert "\n" not in said
            assert lines(tmp_path / "journal") == rows
        if kind == "disk":
            accepted = len(rows)
            ballast.unlink()
            fill(journal, rows)
            assert len(rows) > accepted + 10
            # One that begins anew on a full disk cannot, and leaves what is there.
            with pytest.raises(UserError, match="No space left on device"):
                Journal(tmp_path / "journal").append(metric(0))
            assert lines(tmp_path / "journal") == rows
    if kind == "quota":
        journal.append(metric(len(rows)))
        assert lines(tmp_path / "journal") == [*rows, metric(len(rows))]


def test_a_training_on_a_full_disk_goes_on_once_there_is_space(
    tmp_path: Path, make_run: MakeRun, directory: Path
) -> None:
    with RunStore(str(tmp_path / "mario.db")) as store:
        store.create_run(make_run("r1"))
        with StoreWriter(store, "r1", directory, linger_s=60) as writer:
            writer.metrics(1, 0.0, {"loss": 1.0})
            with largest_file(200), pytest.raises(UserError, match="cannot write the run's journal"):
                writer.metrics(2, 0.0, {f"loss{n}": 1.0 for n in range(10)})
            writer.metrics(3, 0.0, {"loss": 1.0})
        assert [row["agent_steps"] for row in store.metrics("r1")] == [1, 3]


def test_a_journal_that_cannot_be_made_is_one_line(tmp_path: Path, make_run: MakeRun) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "journal"):
        with pytest.raises(UserError, match=rf"cannot write the run's journal {directory}: \w+") as caught:
            Journal(directory)
        assert "\n" not in str(caught.value)
    with (
        RunStore(str(tmp_path / "mario.db")) as store,
        pytest.raises(UserError, match="cannot write the run's journal"),
    ):
        StoreWriter(store, "r1", tmp_path / "file")


def test_a_journal_in_the_folder_of_another_user_is_one_line() -> None:
    with tempfile.TemporaryDirectory(prefix="mario-dist-ro-") as locked:
        Path(locked).chmod(0o555)
        directory = Path(locked) / "journal"
        with unprivileged(), pytest.raises(UserError, match=f"journal {directory}: Permission denied"):
            Journal(directory)
        directory.mkdir()
        with unprivileged(), pytest.raises(UserError, match=f"journal {directory}: Permission denied"):
            Journal(directory).append(metric(1))
        Path(locked).chmod(0o755)


def test_every_field_of_rows_has_a_place_in_a_line(directory: Path) -> None:
    full = Rows(
        episodes=[{"sequence": 1}],
        metrics=[{"name": "loss"}],
        checkpoints=[{"path": "p"}],
        run={"agent_steps": 3},
    )
    assert all(getattr(full, field.name) for field in dataclasses.fields(Rows))
    written(directory, full)
    assert lines(directory) == [full]
