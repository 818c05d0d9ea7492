"""A clock that jumps, for the processes that are started with it; the machine's own goes on."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from mario_dist.errors import UserError

_CACHED_S = 1
LATE_S = _CACHED_S + 1
"""A jump is seen by every process after this long at most."""


class Clock:
    """Wall-clock time as libfaketime shows it to processes with ``env``. Monotonic time stays as it is."""

    def __init__(self, file: Path) -> None:
        """file: where the processes look. Raises ``UserError`` where libfaketime is missing or of no use."""
        self._file = file
        self._offset_s = 0
        library = _library()
        self.env = {
            "LD_PRELOAD": " ".join(filter(None, [library, os.environ.get("LD_PRELOAD")])),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": str(_CACHED_S),
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # a file keeps its time
        }
        self.jump(3600)
        ask = [sys.executable, "-c", "import time; print(time.time())"]
        told = subprocess.run(ask, env=os.environ | self.env, capture_output=True, text=True)
        if told.returncode != 0 or float(told.stdout) < time.time() + 1800:
            raise UserError(f"{library} does not change this machine's clock: leave out the fault clock")
        self.jump(-3600)

    def jump(self, seconds: int) -> None:
        """On from where it is, or back."""
        self._offset_s += seconds
        half = self._file.with_name(f".{self._file.name}")
        half.write_text(f"{self._offset_s:+d}")
        half.rename(self._file)


def _library() -> str:
    spec = importlib.util.find_spec("libfaketime")
    found = sorted(Path(spec.origin).parent.rglob("libfaketime.so.1")) if spec and spec.origin else []
    if not found:
        raise UserError(
            "the fault clock takes libfaketime, which the dev dependencies have on Linux: leave it out"
        )
    return str(found[0])
