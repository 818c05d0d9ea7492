"""A run's copies on shared storage, from which it goes on where its machine is gone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mario_dist.storage import Storage, StorageError

_PAUSES_S = (1.0, 3.0, 0.0)


@dataclass(frozen=True, slots=True)
class Copies:
    """Where a run is copied to. still_ours: raises ``UserError`` where another process took the run over."""

    storage: Storage
    still_ours: Callable[[], None]

    def bring(self, run: str, directory: Path, note: Callable[[str], None], *, last: bool) -> None:
        """Copy what is new. Storage that is away does not stop the training; at last it is waited for.

        Raises ``UserError`` as ``still_ours``.
        """
        problem: StorageError | None = None
        for pause_s in _PAUSES_S if last else (0.0,):
            try:
                self.still_ours()
                self.storage.publish(run, directory)
                return
            except StorageError as error:
                problem = error
            time.sleep(pause_s)
        note(f"{problem}; " + (f"it is in {directory} only" if last else "the next checkpoint tries again"))
