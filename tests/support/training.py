"""Whole trainings in the test's own process."""

from pathlib import Path

from mario_dist.checkpoint import load_checkpoint
from mario_dist.config import RunConfig
from mario_dist.registry import default_tracking_uri
from mario_dist.system.run import RunResult, run_training


def go(config: RunConfig, runs: Path, resumed_from: Path | None = None) -> RunResult:
    """Train in ``runs``, which has a run store of its own, anew or on from a checkpoint."""
    runs.mkdir(exist_ok=True)
    return run_training(
        config,
        runs,
        store_url=f"sqlite:///{runs}/mario.db",
        tracking_uri=default_tracking_uri(),
        resume=None if resumed_from is None else load_checkpoint(resumed_from),
        resumed_from=resumed_from,
    )
