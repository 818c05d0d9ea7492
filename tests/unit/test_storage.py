"""A run's copy on shared storage: a real S3 protocol (moto's server) and a folder."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.s3 import S3, s3_server

from mario_dist import storage as storage_module
from mario_dist.checkpoint import (
    TrainState,
    best_checkpoint,
    checkpoint_replay,
    has_replay,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
    set_aside_newer,
)
from mario_dist.errors import UserError
from mario_dist.storage import Storage, StorageError
from mario_dist.system import copies as copies_module
from mario_dist.system.copies import Copies


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "file":
        return Storage(f"file://{tmp_path}/shared")
    server: S3 = request.getfixturevalue("s3")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return Storage(f"{server.url}/{tmp_path.name}")


def save(run: Path, steps: int, value: float, replay: bytes | None = None) -> Path:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "ring.bin").write_bytes(replay or b"")

    state = TrainState({"weights": np.full(4, value, np.float32)}, {"run_id": run.name})
    return save_checkpoint(run / "checkpoints", steps, state, write if replay is not None else None)


def values(run: Path) -> list[float]:
    """Of all checkpoints, newest first; each is checked while it is read."""
    return [float(load_checkpoint(p).arrays["weights"][0]) for p in list_checkpoints(run / "checkpoints")]


def test_another_machine_goes_on_from_what_this_one_published(storage: Storage, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    assert not storage.fetch("run", there)
    assert not there.exists()
    save(here, 100, 1.0, b"old")
    best = save(here, 200, 2.0, b"replay")
    (here / "config.yaml").write_text("seed: 3\n")
    (here / "videos").mkdir()
    (here / "videos" / "best.mp4").write_bytes(b"film")
    mark_best(here / "checkpoints", best, {"clear_rate": 0.5})
    storage.publish("run", here)
    assert storage.fetch("run", there)
    assert values(there) == [2.0, 1.0]
    assert best_checkpoint(there / "checkpoints") == there / "checkpoints" / best.name
    folder = checkpoint_replay(there / "checkpoints" / best.name)
    assert folder is not None
    assert (folder / "ring.bin").read_bytes() == b"replay"
    assert (there / "config.yaml").read_text() == "seed: 3\n"
    # It goes on there, and the first one comes back to find that.
    newest = save(there, 300, 3.0)
    mark_best(there / "checkpoints", newest, {"clear_rate": 0.75})
    prune(there / "checkpoints", 2)
    storage.publish("run", there)
    assert storage.fetch("run", here)
    assert best_checkpoint(here / "checkpoints") == here / "checkpoints" / newest.name
    shutil.rmtree(here)
    assert storage.fetch("run", here)
    assert values(here) == [3.0, 2.0]
    assert checkpoint_replay(here / "checkpoints" / best.name) is None, "the newest alone keeps one"


def test_a_replay_that_was_being_removed_is_left_out(storage: Storage, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    path = save(here, 100, 1.0, b"replay")
    storage.publish("run", here)
    storage._fs.delete_file(storage._at(f"run/checkpoints/{path.name}/replay/ring.bin"))
    storage._write(f"run/checkpoints/{path.name}/replay/other.bin", b"")
    storage.fetch("run", there)
    assert values(there) == [1.0]
    assert checkpoint_replay(there / "checkpoints" / path.name) is None


def test_what_is_made_again_or_set_aside_is_so_in_the_copy(storage: Storage, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    for steps, value in ((100, 1.0), (200, 2.0)):
        save(here, steps, value)
    storage.publish("run", here)
    set_aside_newer(here / "checkpoints", 100)
    save(here, 200, 9.0)
    storage.publish("run", here)
    storage.fetch("run", there)
    assert values(there) == [9.0, 1.0]
    aside = there / "checkpoints" / "abandoned-step-000000000200"
    assert float(load_checkpoint(aside).arrays["weights"][0]) == 2.0


@pytest.mark.parametrize("completed", [0, 1, 2, 3])
def test_an_interrupted_copy_is_the_old_or_the_new_one(
    completed: int, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    old = save(here, 100, 1.0, b"old")
    storage.publish("run", here)
    save(here, 200, 2.0, b"replay")
    assert not has_replay(old)
    done: list[str] = []
    upload, write = Storage._upload, Storage._write

    def counted(original: Any) -> Any:
        def method(self: Storage, *arguments: Any) -> None:
            if len(done) == completed:
                raise OSError("the network is down")
            done.append(str(arguments))
            original(self, *arguments)

        return method

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "_upload", counted(upload))
        patch.setattr(Storage, "_write", counted(write))
        with pytest.raises(StorageError, match=r"cannot copy run to .*: the network is down"):
            storage.publish("run", here)
    assert storage.fetch("run", there)
    assert values(there) == [1.0], "the new one's manifest is written last, and the old goes after that"
    folder = checkpoint_replay(there / "checkpoints" / old.name)
    assert folder is not None
    assert (folder / "ring.bin").read_bytes() == b"old", "and so does its replay"
    storage.publish("run", here)
    shutil.rmtree(there)
    storage.fetch("run", there)
    assert values(there) == [2.0, 1.0]
    assert not has_replay(there / "checkpoints" / old.name)


def test_one_process_at_a_time_trains_a_run(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage_module, "_STALE_S", 20.0)
    monkeypatch.setattr(storage_module, "_RENEW_S", 0.3)
    monkeypatch.setattr(storage_module, "_POLL_S", 0.3)
    notes: list[str] = []
    with storage.held("run", notes.append) as still_ours:
        still_ours()
        with pytest.raises(UserError, match=r"run is being trained by another process \(.*pid \d+\)"):
            storage.held("run", notes.append).__enter__()
        with storage.held("other", notes.append):
            pass
    assert len(notes) == 1
    with storage.held("run", notes.append):
        assert len(notes) == 1, "who ended has left nothing to wait for"


def test_a_sign_of_life_that_cannot_be_read_is_not_nobodys(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_STALE_S", 20.0)
    monkeypatch.setattr(storage_module, "_POLL_S", 0.1)
    with storage.held("run", print) as still_ours:
        storage._write("run/owner.json", b"{")
        still_ours()
        threading.Timer(0.5, lambda: storage._sign("run/owner.json", "another")).start()
        with pytest.raises(UserError, match="run is being trained by another process"):
            storage.held("run", print).__enter__()
    monkeypatch.setattr(storage_module, "_STALE_S", 0.3)
    storage._write("run/owner.json", b"{")
    with storage.held("run", print) as still_ours:
        still_ours()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_whose_owner_died_is_taken_over(
    elsewhere: bool, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_STALE_S", 0.5)
    monkeypatch.setattr(storage_module, "_POLL_S", 0.2)
    process = subprocess.Popen(["true"])
    process.wait()
    child = process.pid
    host = "gone.example" if elsewhere else socket.gethostname()
    owner = {"token": "a", "host": host, "pid": child, "renewed_at": 0.0}
    storage._write("run/owner.json", json.dumps(owner).encode())
    notes: list[str] = []
    with storage.held("run", notes.append) as still_ours:
        assert [("gone.example" in note) for note in notes] == ([True] if elsewhere else [])
        still_ours()
        storage._write("run/owner.json", json.dumps({**owner, "token": "b"}).encode())
        with pytest.raises(UserError, match="run is trained by another process now"):
            still_ours()
    assert storage._owner("run/owner.json") is not None, "the other one's sign of life is not ours to remove"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/runs", "write s3://BUCKET/PREFIX"),
        ("s3://", "write s3://BUCKET/PREFIX"),
        ("runs", "write s3://BUCKET/PREFIX"),
    ],
)
def test_a_url_that_is_none_is_one_line(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        Storage(url)
    assert url in str(raised.value)
    assert "\n" not in str(raised.value)


def test_storage_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    away = Storage(f"file://{tmp_path}/file/runs")
    with pytest.raises(UserError, match="cannot use file://"):
        away.held("run", print).__enter__()
    save(tmp_path / "run", 100, 1.0)
    with pytest.raises(StorageError, match="cannot copy run to file://"):
        away.publish("run", tmp_path / "run")


def test_a_training_goes_on_while_the_storage_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "_PAUSES_S", (0.0, 0.0, 0.0))
    notes: list[str] = []
    with s3_server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        storage = Storage(server.url)
        save(tmp_path / "run", 100, 1.0)
        with storage.held("run", print) as still_ours:
            copies = Copies(storage, still_ours)
            copies.bring("run", tmp_path / "run", notes.append, last=False)
            assert notes == []
            server.process.kill()
            server.process.wait()
            copies.bring("run", tmp_path / "run", notes.append, last=False)
            assert notes[0].endswith("; the next checkpoint tries again")
            copies.bring("run", tmp_path / "run", notes.append, last=True)
            assert notes[1].endswith(f"; it is in {tmp_path / 'run'} only")
    assert all(note.startswith("cannot use s3://") and "\n" not in note for note in notes)


def test_credentials_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="they belong in the environment") as raised:
        Storage("s3://AKID:SECRET@bucket/p")
    assert "SECRET" not in str(raised.value)
