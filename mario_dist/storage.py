"""Runs on shared storage: an object store or a network file system that every machine of a cluster reaches.

A run is trained in a working copy on the local disk, and what it must not lose with its machine is copied:
its configuration, its checkpoints and its videos. Object stores have no rename, so a checkpoint is there once
its manifest is, which is written last and removed first.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from mario_dist.errors import UserError

VARIABLE = "MARIO_DIST_STORAGE"

_MANIFEST = "manifest.json"
_REPLAY = "replay"
_OWNER = "owner.json"
_RENEW_S = 20.0
_STALE_S = 60.0
_CHECKPOINTS = ("step-*", "abandoned-step-*")
_POLL_S = 2.0


class StorageError(Exception):
    """The storage did not do what it was asked; the text says what and why."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who trains a run. renewed_at: seconds since 1970, by the owner's clock."""

    token: str
    host: str
    pid: int
    renewed_at: float


_UNREADABLE = Owner("", "an unknown host", 0, 0.0)


class Storage:
    """A folder of runs at ``url``: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``file:///PATH``.

    Credentials are those of the environment (AWS_..., an instance's role, ...).
    """

    def __init__(self, url: str) -> None:
        """Raises ``UserError`` where that is no such URL. Nothing is asked of the storage yet."""
        self.url = url.rstrip("/")
        if "@" in urlsplit(url).netloc:
            raise UserError(
                f"{VARIABLE} holds credentials: they belong in the environment, AWS_ACCESS_KEY_ID and so on"
            )
        try:
            self._fs, self._root = fs.FileSystem.from_uri(self.url)
            if not self._root:
                raise ValueError("it names no bucket")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{VARIABLE}={url}: {_why(error)}; write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH"
            ) from error
        self._files: dict[str, bytes | tuple[int, int]] = {}  # what was published, by key
        self._ours: set[str] = set()  # the keys of checkpoints that were fetched or published

    def publish(self, run: str, directory: Path) -> None:
        """Make the copy of a run what its directory is now.

        What is new comes before what is old goes. Raises ``StorageError`` where that fails: a copy that was
        there before is still there or gone, never torn, and the next call makes up for it.
        """
        folders = [p for pattern in _CHECKPOINTS for p in (directory / "checkpoints").glob(pattern)]
        local = {path.name: path for path in folders}
        with _explained(f"copy {run} to {self.url}"):
            there = self._checkpoints(run)
            for name, path in sorted(local.items()):
                manifest = (path / _MANIFEST).read_bytes()
                if there.get(name) != _digest(manifest):
                    self._publish_checkpoint(path, f"{run}/checkpoints/{name}", manifest)
                self._ours.add(f"{run}/checkpoints/{name}")
            for name in ("config.yaml", "checkpoints/best.json"):
                self._publish_small(directory / name, f"{run}/{name}")
            for file in sorted((directory / "videos").glob("*.*")):
                self._publish_video(file, f"{run}/videos/{file.name}")
            for name in there.keys() & local.keys():
                if not (local[name] / _REPLAY).exists():  # the newest one alone keeps it
                    self._remove_folder(f"{run}/checkpoints/{name}/{_REPLAY}")
            # What another machine wrote, and this one has not seen, is not its to remove.
            for key in {f"{run}/checkpoints/{name}" for name in there.keys() - local.keys()} & self._ours:
                self._remove_checkpoint(key)

    def fetch(self, run: str, directory: Path) -> bool:
        """Bring the checkpoints of a run that ``directory`` lacks; False where the storage has no such run.

        Raises ``StorageError``. Whoever reads a checkpoint checks it.
        """
        with _explained(f"copy {run} from {self.url}"):
            there = self._checkpoints(run)
            checkpoints = directory / "checkpoints"
            newer = False
            for name in sorted(there):
                self._ours.add(f"{run}/checkpoints/{name}")
                if (checkpoints / name).exists():
                    continue
                half = checkpoints / f".writing-{name}"
                shutil.rmtree(half, ignore_errors=True)
                half.mkdir(parents=True)
                self._copy_from(f"{run}/checkpoints/{name}", half)
                if not _whole_replay(half):
                    shutil.rmtree(half / _REPLAY)
                half.rename(checkpoints / name)
                newer = True
            for name in ("config.yaml", "checkpoints/best.json"):
                content = self._read(f"{run}/{name}")
                if content is not None and (newer or not (directory / name).exists()):
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    (directory / name).write_bytes(content)
            return bool(there) or self._read(f"{run}/config.yaml") is not None

    @contextmanager
    def held(self, run: str, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Nobody else trains the run meanwhile. Yields what raises ``UserError`` where somebody took it over,
        and ``StorageError`` where that can't be seen.

        An owner that died is recognised on its own host, and elsewhere by a minute without a sign of
        life. Then this has waited for it. Raises ``UserError`` where another one lives.
        """
        key = f"{run}/{_OWNER}"
        token = secrets.token_hex(8)
        with _explained(f"use {self.url}", UserError):
            waited = self._await_release(run, key, note)
            self._sign(key, token)
        stop = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(key, token, stop), name="storage", daemon=True)
        renewing.start()

        def check() -> None:
            with _explained(f"use {self.url}"):
                owner = self._owner(key)
            if owner is not None and owner.token not in (token, _UNREADABLE.token):
                raise UserError(f"{run} is trained by another process now ({owner.host}, pid {owner.pid})")

        try:
            if waited:  # others may have waited for the same
                time.sleep(_POLL_S)
                check()
            yield check
        finally:
            stop.set()
            renewing.join()
            with suppress(OSError, UserError, StorageError):
                check()
                self._fs.delete_file(self._at(key))

    def _await_release(self, run: str, key: str, note: Callable[[str], None]) -> bool:
        """Return once nobody owns the run: whether that took a while."""
        seen = self._owner(key)
        if seen is None or (seen.host == socket.gethostname() and not _lives(seen.pid)):
            return False
        note(f"{run} was trained by {seen.host}, pid {seen.pid}: {_STALE_S:.0f} s for a sign of life")
        # By this process's clock alone: the hosts' may differ.
        until = time.monotonic() + _STALE_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            now = self._owner(key) or self._owner(key)  # it may have been looked at while it was renewed
            if now is None:
                return True
            if now != seen:
                raise UserError(
                    f"{run} is being trained by another process ({now.host}, pid {now.pid}); stop it first"
                )
        return True

    def _sign(self, key: str, token: str) -> None:
        owner = Owner(token, socket.gethostname(), os.getpid(), time.time())
        self._write(key, json.dumps(asdict(owner)).encode())

    def _renew(self, key: str, token: str, stop: threading.Event) -> None:
        while not stop.wait(_RENEW_S):
            with suppress(OSError):  # it is tried again, and a minute without is borne
                owner = self._owner(key)
                if owner is not None and owner.token not in (token, _UNREADABLE.token):
                    return
                self._sign(key, token)

    def _owner(self, key: str) -> Owner | None:
        content = self._read(key)
        if content is None:
            return None
        try:
            return Owner(**json.loads(content))
        except (ValueError, TypeError):
            return _UNREADABLE  # half of one that is being renewed, on a storage that shows such: not nobody

    def _checkpoints(self, run: str) -> dict[str, str]:
        """The manifests' digests of the complete checkpoints that are there, by name."""
        found: dict[str, str] = {}
        selector = fs.FileSelector(self._at(f"{run}/checkpoints"), allow_not_found=True)
        for info in self._fs.get_file_info(selector):
            name = Path(info.path).name
            if any(fnmatch(name, pattern) for pattern in _CHECKPOINTS):
                content = self._read(f"{run}/checkpoints/{name}/{_MANIFEST}")
                found[name] = "" if content is None else _digest(content)
        return {name: digest for name, digest in found.items() if digest}

    def _publish_checkpoint(self, path: Path, key: str, manifest: bytes) -> None:
        self._remove_checkpoint(key)
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != _MANIFEST):
            self._upload(file, f"{key}/{file.relative_to(path)}")
        self._write(f"{key}/{_MANIFEST}", manifest)

    def _publish_small(self, path: Path, key: str) -> None:
        if path.is_file() and self._files.get(key) != (content := path.read_bytes()):
            self._write(key, content)
            self._files[key] = content

    def _publish_video(self, path: Path, key: str) -> None:
        state = (path.stat().st_size, path.stat().st_mtime_ns)
        if self._files.get(key) != state:
            self._upload(path, key)
            self._files[key] = state

    def _remove_checkpoint(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_file(self._at(f"{key}/{_MANIFEST}"))
        self._remove_folder(key)

    def _remove_folder(self, key: str) -> None:
        if self._fs.get_file_info(self._at(key)).type == fs.FileType.Directory:
            self._fs.delete_dir(self._at(key))

    def _upload(self, path: Path, key: str) -> None:
        self._make_folder(key)
        fs.copy_files(str(path), self._at(key), fs.LocalFileSystem(), self._fs)

    def _copy_from(self, key: str, directory: Path) -> None:
        fs.copy_files(self._at(key), str(directory), self._fs, fs.LocalFileSystem())

    def _write(self, key: str, content: bytes) -> None:
        """At once: an object appears when it is closed, a file when it is renamed."""
        self._make_folder(key)
        files = isinstance(self._fs, fs.LocalFileSystem)
        target = f"{self._at(key)}.writing" if files else self._at(key)
        with self._fs.open_output_stream(target) as stream:
            stream.write(content)
        if files:
            self._fs.move(target, self._at(key))

    def _read(self, key: str) -> bytes | None:
        try:
            with self._fs.open_input_stream(self._at(key)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def _make_folder(self, key: str) -> None:
        if isinstance(self._fs, fs.LocalFileSystem):
            self._fs.create_dir(str(Path(self._at(key)).parent), recursive=True)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"


def default_storage() -> Storage | None:
    """Where MARIO_DIST_STORAGE says: for each URL one, which remembers what it fetched.

    Raises ``UserError`` where it can't be used.
    """
    url = os.environ.get(VARIABLE)
    return _storage(url) if url else None


_storage = lru_cache(Storage)


@contextmanager
def _explained(what: str, raised: type[Exception] = StorageError) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise raised(f"cannot {what}: {_why(error)}") from error


def _whole_replay(checkpoint: Path) -> bool:
    """Whether it has no replay or all of its files: one that was being removed is not damaged."""
    if not (checkpoint / _REPLAY).exists():
        return True
    try:
        files = json.loads((checkpoint / _MANIFEST).read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        return True  # whoever reads it will say so
    return all((checkpoint / name).exists() for name in files if name.startswith(f"{_REPLAY}/"))


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
