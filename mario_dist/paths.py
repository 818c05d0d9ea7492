"""Where a person's runs lie: ``runs/`` under the current directory, or where MARIO_DIST_RUNS says."""

import os
from pathlib import Path


def runs_dir() -> Path:
    return Path(os.environ.get("MARIO_DIST_RUNS", "runs"))
