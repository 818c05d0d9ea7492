"""The run store: runs, episodes, metrics and checkpoints in SQLite or PostgreSQL."""

from mario_dist.store.engine import StoreUnavailable, default_url, normalise_url
from mario_dist.store.maintenance import check_database, export_database, upgrade_database
from mario_dist.store.rows import (
    CheckpointKind,
    CheckpointRow,
    EpisodeRow,
    EpisodeSummary,
    EvaluationRow,
    MetricRow,
    PromotionEvent,
    PromotionRow,
    PromotionVerdict,
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
    "PromotionEvent",
    "PromotionRow",
    "PromotionVerdict",
    "RunChanges",
    "RunRow",
    "RunStatus",
    "RunStore",
    "StoreUnavailable",
    "StoreWriter",
    "check_database",
    "default_url",
    "export_database",
    "normalise_url",
    "replay",
    "upgrade_database",
]
