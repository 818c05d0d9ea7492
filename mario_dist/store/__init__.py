"""The run store: runs, episodes, metrics and checkpoints in SQLite or PostgreSQL."""

from mario_dist.store.engine import StoreUnavailable, default_url, normalise_url
from mario_dist.store.rows import (
    CheckpointKind,
    CheckpointRow,
    EpisodeRow,
    EpisodeSummary,
    EvaluationRow,
    MetricRow,
    RunChanges,
    RunRow,
    RunStatus,
)
from mario_dist.store.run_store import RunStore
from mario_dist.store.writer import StoreWriter, replay

__all__ = [
    "CheckpointKind",
    "CheckpointRow",
    "EpisodeRow",
    "EpisodeSummary",
    "EvaluationRow",
    "MetricRow",
    "RunChanges",
    "RunRow",
    "RunStatus",
    "RunStore",
    "StoreUnavailable",
    "StoreWriter",
    "default_url",
    "normalise_url",
    "replay",
]
