"""Rows on their way to the run store, on disk: what is here survives the process, and the database's absence.

A journal is a folder of numbered segments, each a file of lines; a line is the CRC-32 and the JSON of some
``Rows``. Lines are appended to the newest segment. A sealed one is read, written to the database and removed.
"""

import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from mario_dist.errors import UserError
from mario_dist.store.rows import Rows

SEGMENT_BYTES = 2**22
_SEGMENT = re.compile(r"\d{8}\.(jsonl|damaged)")
_TIMES = ("created_at", "ended_at")

_log = logging.getLogger(__name__)


class Journal:
    """The journal of one run, which one process at a time may open. One thread appends; one may read."""

    def __init__(self, directory: Path) -> None:
        """Make the folder where it is missing. What an earlier process left is there to be read.

        Raises ``UserError`` where the disk does not take it.
        """
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from error
        # Those that were set aside too, whose names must stay theirs.
        names = [path.name for path in directory.iterdir()]
        self._number = max((int(name[:8]) for name in names if _SEGMENT.fullmatch(name)), default=0)
        self._sealed = self._number
        self._file: int | None = None
        self._bytes = 0

    def append(self, rows: Rows) -> None:
        """Add ``rows``: from here on only the disk can lose them. Raises ``UserError`` where it is full."""
        line = _encode(rows)
        try:
            if self._file is None or self._bytes >= SEGMENT_BYTES:
                self.seal()
                self._number += 1
                path = self.directory / f"{self._number:08d}.jsonl"
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                self._bytes = 0
            try:
                written = os.write(self._file, line)
                while written < len(line):
                    written += os.write(self._file, line[written:])
            except OSError:
                os.ftruncate(self._file, self._bytes)  # a half line would spoil the next
                raise
        except OSError as error:
            raise self._failure(error) from error
        self._bytes += len(line)

    def seal(self) -> None:
        """End the newest segment, so that it can be read."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._sealed = self._number

    def sealed(self) -> list[Path]:
        """The segments that can be read, oldest first."""
        # By number: the file of the newest one is there before ``append`` has its descriptor.
        sealed = self._sealed
        return [path for path in segments(self.directory) if int(path.stem) <= sealed]

    def sync(self) -> None:
        """Wait until the disk has every line, for the machine's sudden end."""
        for path in [*segments(self.directory), self.directory]:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # it has just reached the database
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Seal, and remove the folder where nothing is left in it."""
        self.seal()
        if not segments(self.directory):
            try:
                self.directory.rmdir()
            except OSError:
                return  # something damaged was set aside in it

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"cannot write the run's journal {self.directory}: {error.strerror}")


def segments(directory: Path) -> list[Path]:
    """The files of a journal, oldest first."""
    return sorted(directory.glob(f"{'[0-9]' * 8}.jsonl"))


def read_segment(path: Path) -> Iterator[Rows | None]:
    """The lines of a segment; None in the place of a damaged one.

    A last line without an end was never accepted and is left out.
    """
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield _decode(line)


def discard_segment(path: Path, damaged: int) -> None:
    """Remove what the database has; but where lines were damaged, set it aside as ``*.damaged``, and warn."""
    if not damaged:
        path.unlink(missing_ok=True)  # a writer that gave up may still come to it
        return
    aside = path.with_suffix(".damaged")
    path.rename(aside)
    _log.warning(
        "of the journal, %d line(s) are damaged and were left out; they are kept in %s", damaged, aside
    )


def _encode(rows: Rows) -> bytes:
    tree = {name: value for name, value in asdict(rows).items() if value}
    # JSON's numbers keep every bit of a float, and Python's JSON also NaN, of which a metric may be.
    content = json.dumps(tree, default=_plain, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(content), content)


def _decode(line: bytes) -> Rows | None:
    """What a line says; None where it is damaged."""
    check, _, content = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(content):
        return None
    tree: dict[str, Any] = json.loads(content)
    for values in (*tree.get("checkpoints", ()), tree.get("run", {})):
        for name in _TIMES:
            if values.get(name) is not None:
                values[name] = datetime.fromisoformat(values[name])
    return Rows(**tree)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "item"):  # NumPy's scalars
        return value.item()
    return str(value)
