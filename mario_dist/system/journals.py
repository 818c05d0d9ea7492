"""Rows that dead processes left in their runs' journals."""

from pathlib import Path

from mario_dist.errors import UserError
from mario_dist.paths import runs_dir
from mario_dist.store import RunStore, replay
from mario_dist.store.journal import segments
from mario_dist.system.run_lock import is_trained, lock_run
from mario_dist.system.session import JOURNAL


def waiting() -> list[str]:
    """The runs whose journals hold rows that no training is about to bring to the database."""
    return [path.parent.name for path in _journals() if not is_trained(path.parent)]


def replay_all(store: RunStore) -> tuple[dict[str, int], dict[str, str]]:
    """Bring all of them to the database: the rows of each run, and why a run was left alone."""
    written: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for path in _journals():
        try:
            with lock_run(path.parent):
                written[path.parent.name] = replay(store, path.parent.name, path)
        except UserError as error:
            skipped[path.parent.name] = str(error)
        except OSError as error:  # another user's, say
            skipped[path.parent.name] = f"cannot use {error.filename or path}: {error.strerror}"
    return written, skipped


def _journals() -> list[Path]:
    return [path for path in sorted(runs_dir().glob(f"*/{JOURNAL}")) if segments(path)]
