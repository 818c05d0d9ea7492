"""Where a person's runs lie (``runs/``, or where MARIO_DIST_RUNS says), and how they are named."""

import os
import re
import secrets
from datetime import datetime
from pathlib import Path

from mario_dist.errors import UserError

_LONGEST = 64
"""Of a name in an id that, with time and number, is one that ``check_run_id`` takes."""


def runs_dir() -> Path:
    return Path(os.environ.get("MARIO_DIST_RUNS", "runs"))


def new_run_id(name: str) -> str:
    """A readable, sortable and unique id, safe as a file name."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:_LONGEST] or "run"
    return f"{safe}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> None:
    """Raises ``UserError`` where a run can't be called so: it is a folder's name, an object's and a job's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id) or run_id in ("latest", "models"):
        raise UserError(
            f"{run_id!r} is no run id: write up to 100 letters, digits, '-', '_' and '.', beginning with a"
            " letter or digit, and not 'latest' or 'models'"
        )
