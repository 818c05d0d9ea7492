"""A run's state on disk: written whole or not at all, and checked before it is believed.

A checkpoint is a directory ``step-<agent steps>`` with arrays.safetensors, meta.json and, written last,
manifest.json with the size and SHA-256 of the others. It is built beside its place, synced and renamed.
The newest one may have a replay too, which is written and read by whoever keeps one. Nothing is pickled.
"""

import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mario_dist.errors import UserError
from mario_dist.types import Arrays

FORMAT = 1
FILES = ("arrays.safetensors", "meta.json", "manifest.json")
"""What every checkpoint has; a policy needs no more."""

_PREFIX = "step-"
_TEMPORARY = ".writing-"
_REPLAY = "replay"
_BEST = "best.json"
_CHUNK_BYTES = 2**24
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint that must not be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything that a run needs to go on: named arrays, and JSON-able counters, ids and configuration."""

    arrays: Arrays
    meta: Mapping[str, Any]


def save_checkpoint(
    directory: Path,
    agent_steps: int,
    state: TrainState,
    save_replay: Callable[[Path], None] | None = None,
) -> Path:
    """Write ``directory/step-<agent_steps>``. An existing one of that name is replaced.

    save_replay: writes files into the folder that it is given, or none. Older checkpoints lose their replay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / _name(agent_steps)
    temporary = directory / f"{_TEMPORARY}{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    files = {
        # safetensors writes the memory as it lies: strided arrays must be made contiguous first.
        "arrays.safetensors": save({k: np.asarray(v, order="C") for k, v in state.arrays.items()}),
        "meta.json": json.dumps(state.meta, indent=1).encode(),
    }
    digests = {name: _digest(content) for name, content in files.items()}
    if save_replay is not None:
        save_replay(temporary / _REPLAY)
        for path in sorted(p for p in (temporary / _REPLAY).rglob("*") if p.is_file()):
            digests[str(path.relative_to(temporary))] = _digest_file(path)
            _sync(path)
        for folder in [p for p in temporary.rglob("*") if p.is_dir()]:
            _sync(folder)
    manifest = {"format": FORMAT, "agent_steps": agent_steps, "files": digests}
    for name, content in {**files, "manifest.json": json.dumps(manifest, indent=1).encode()}.items():
        _write_synced(temporary / name, content)
    _sync(temporary)
    swapped = final.exists() and _exchange(temporary, final)
    if not swapped:
        if final.exists():
            _discard(final)  # a crash between here and the next line leaves the checkpoint before it
        temporary.rename(final)
    _sync(directory)
    if swapped:
        shutil.rmtree(temporary)
    for path in list_checkpoints(directory):
        if path != final:
            _discard_replay(path)
    return final


def load_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint after checking every byte of it. Raises ``CheckpointError`` by name."""
    files, contents = _files(path), {}
    for name in ("arrays.safetensors", "meta.json"):
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} is damaged: cannot read {name} ({error.strerror})") from error
        if _digest(contents[name]) != files.get(name):
            raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    try:
        arrays: Arrays = load(contents["arrays.safetensors"])
        meta = json.loads(contents["meta.json"])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return TrainState(arrays, meta)


def _files(path: Path) -> Mapping[str, Any]:
    """The digests in a checkpoint's manifest. Raises ``CheckpointError``."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no manifest.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: cannot read manifest.json ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of mario-dist")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path} is damaged: manifest.json lists no files")
    return files


def has_replay(path: Path) -> bool:
    """Whether a checkpoint has a replay, whole or damaged."""
    return (path / _REPLAY).is_dir()


def checkpoint_replay(path: Path) -> Path | None:
    """The folder of the replay in a checkpoint, every byte of it checked; None where there is none.

    Raises ``CheckpointError`` where it is not what was written.
    """
    folder = path / _REPLAY
    if not has_replay(path):
        return None
    for name, digest in _files(path).items():
        if not name.startswith(f"{_REPLAY}/"):
            continue
        try:
            intact = _digest_file(path / name) == digest
        except OSError as error:
            raise CheckpointError(f"{path} is damaged: cannot read {name} ({error.strerror})") from error
        if not intact:
            raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    return folder


def list_checkpoints(directory: Path) -> list[Path]:
    """The complete or damaged (never the half-written) checkpoints in ``directory``, newest first.

    Raises ``UserError`` where it cannot be read: who takes that for none would begin a run anew.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read the checkpoints in {directory}: {error.strerror}") from error
    return sorted((directory / name for name in names if name.startswith(_PREFIX)), reverse=True)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints and the best one, and what a crash left half-written.

    Where it cannot be read which is the best one, none is removed, and a warning says so.
    """
    try:
        best = _best(directory)
    except (OSError, ValueError) as error:
        _log.warning("no old checkpoint is removed: cannot read %s (%s)", directory / _BEST, error)
        return
    for path in list_checkpoints(directory)[keep:]:
        if path != best:
            _discard(path)
    for path in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside_newer(directory: Path, agent_steps: int) -> list[Path]:
    """Rename the checkpoints beyond ``agent_steps`` to ``abandoned-...``, which nothing lists or prunes.

    A run that goes on from an older checkpoint leaves them on a branch of their own.
    """
    newer = [p for p in list_checkpoints(directory) if p.name > _name(agent_steps)]
    moved = []
    for path in newer:
        _discard_replay(path)
        aside = path.with_name(f"abandoned-{path.name}")
        if aside.exists():
            _discard(aside)
        moved.append(path.rename(aside))
    return moved


def mark_best(directory: Path, checkpoint: Path, evaluation: Mapping[str, Any]) -> None:
    """Point at the best checkpoint so far, atomically."""
    temporary = directory / f"{_TEMPORARY}{_BEST}"
    content = {"checkpoint": checkpoint.name, "evaluation": evaluation}
    _write_synced(temporary, json.dumps({**content, "sha256": _best_digest(content)}, indent=1).encode())
    temporary.rename(directory / _BEST)
    _sync(directory)


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that ``mark_best`` named, if it is there."""
    try:
        return _best(directory)
    except (OSError, ValueError):
        return None


def _best(directory: Path) -> Path | None:
    """``best_checkpoint``. Raises ``OSError`` or ``ValueError`` where there is one, but not which."""
    try:
        content = json.loads((directory / _BEST).read_bytes())
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    name = content.get("checkpoint") if isinstance(content, dict) else None
    if not isinstance(name, str) or not re.fullmatch(rf"{_PREFIX}\d+", name, re.ASCII):
        raise ValueError("it names no checkpoint")
    digest = content.pop("sha256", None)  # a version that wrote none is believed
    if digest not in (None, _best_digest(content)):
        raise ValueError("it is not what was written")
    path = directory / name
    try:
        path.stat()
    except FileNotFoundError:  # such as one that was set aside
        return None
    return path


def _best_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where kernel and file system can: Linux, on its own file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    return rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0


def _name(agent_steps: int) -> str:
    return f"{_PREFIX}{agent_steps:012d}"


def _discard(path: Path, aside: Path | None = None) -> None:
    """Remove a folder; killed half-way, what is left is not listed, and the next ``prune`` removes it."""
    aside = aside or path.with_name(f"{_TEMPORARY}old-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def _discard_replay(path: Path) -> None:
    if has_replay(path):
        _discard(path / _REPLAY, path.with_name(f"{_TEMPORARY}{_REPLAY}-{path.name}"))


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _digest_file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
