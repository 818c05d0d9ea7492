"""The rows of the run store as plain frozen values. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

from mario_dist.types import Episode, EpisodeEnd, EpisodeRecord

RunStatus = Literal["running", "finished", "stopped", "failed"]
CheckpointKind = Literal["latest", "best", "final"]
PromotionEvent = Literal["promote", "rollback", "changed", "put back"]
PromotionVerdict = Literal["passed", "forced", "failed", "verified", "unverified"]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One training run. Times are timezone-aware UTC; steps are agent steps over all lanes.

    level: the levels played, joined by commas. directory: where its files are (``runs/<id>``).
    """

    id: str
    name: str
    status: RunStatus = "running"
    created_at: datetime = field(default_factory=utc_now)
    updated_at: datetime = field(default_factory=utc_now)
    ended_at: datetime | None = None
    seed: int
    agent_steps: int = 0
    total_steps: int
    level: str
    algo: str
    config: Mapping[str, Any]
    git_commit: str | None = None
    git_dirty: bool = False
    versions: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    directory: str


class RunChanges(TypedDict, total=False):
    """What ``RunStore.update_run`` may change."""

    status: RunStatus
    ended_at: datetime | None
    agent_steps: int
    total_steps: int
    config: Mapping[str, Any]
    git_commit: str | None
    git_dirty: bool
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    mlflow_run_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """One checkpoint of a run; ``evaluation`` is the report that it earned, where it was evaluated."""

    agent_steps: int
    path: str
    kind: CheckpointKind
    evaluation: Mapping[str, Any] | None = None
    created_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """What a protocol said of a checkpoint: an ``EvalReport`` as a mapping.

    protocol: the report's protocol as canonical JSON, by which the same one is found again.
    """

    agent_steps: int
    path: str
    protocol: str
    report: Mapping[str, Any]
    created_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRow:
    """What happened to an alias of a registered model.

    number: from 1, without a gap, given by the store. event: a promotion, a rollback, a change that another
    program made (MLflow's UI, say), or its reversal. actor: who, where it is known. from_version, to_version:
    None for no version; moved: whether the alias went there. registry: MLflow's tracking URI, without
    credentials. verdict: of the gate; or verified, only that it is what was registered. report: the
    ``EvalReport`` by which it was judged.
    """

    model: str
    alias: str
    number: int = 0
    at: datetime = field(default_factory=utc_now)
    event: PromotionEvent
    actor: str | None = None
    from_version: int | None
    to_version: int | None
    moved: bool
    verdict: PromotionVerdict
    reason: str = ""
    run_id: str | None = None
    registry: str
    report: Mapping[str, Any] | None = None


class EpisodeRow(TypedDict):
    """One finished episode: ``EpisodeRecord`` and its ``Episode``, flat, and when the learner heard of it."""

    agent_steps: int
    actor: int
    incarnation: int
    sequence: int
    weights_version: int
    lane: int
    level: str
    world: int
    stage: int
    episode_return: float
    length: int
    x_pos_max: int
    score: int
    coins: int
    time_left: int
    life: int
    status: str
    flag_get: bool
    end: EpisodeEnd
    seconds: float


class MetricRow(TypedDict):
    """One training metric; ``wall_s`` is seconds since the run began."""

    agent_steps: int
    wall_s: float
    name: str
    value: float


class EpisodeSummary(TypedDict):
    """``flags`` counts cleared episodes; ``*_last_100`` are means over the newest 100; None without any."""

    count: int
    flags: int
    best_x: int | None
    mean_x_last_100: float | None
    mean_return_last_100: float | None


@dataclass(slots=True)
class Rows:
    """What a run writes in one transaction: rows of each table without the run's id, and changes of the run.

    All values are JSON-able but for times, so that a journal can keep them.
    """

    episodes: list[dict[str, object]] = field(default_factory=list)
    metrics: list[dict[str, object]] = field(default_factory=list)
    checkpoints: list[dict[str, object]] = field(default_factory=list)
    run: RunChanges = field(default_factory=RunChanges)

    def __len__(self) -> int:
        return len(self.episodes) + len(self.metrics) + len(self.checkpoints) + bool(self.run)

    def extend(self, later: "Rows") -> None:
        self.episodes += later.episodes
        self.metrics += later.metrics
        self.checkpoints += later.checkpoints
        self.run |= later.run


# NumPy's scalars are not what a database driver expects (SQLite stores np.int64 as a blob).
_PLAIN = {
    f.name: f.type if f.type in (int, float, bool) else str for f in fields(Episode) if f.name != "frames"
}


def episode_values(agent_steps: int, record: EpisodeRecord) -> dict[str, object]:
    """The columns of one episode. ``end`` is a reserved word in SQL, so its column is ``ended_by``."""
    values: dict[str, object] = {
        "agent_steps": int(agent_steps),
        "actor": int(record.actor),
        "incarnation": int(record.incarnation),
        "sequence": int(record.sequence),
        "weights_version": int(record.weights_version),
    }
    for name, plain in _PLAIN.items():
        values["ended_by" if name == "end" else name] = plain(getattr(record.episode, name))
    return values


def metric_values(agent_steps: int, wall_s: float, metrics: Mapping[str, float]) -> list[dict[str, object]]:
    """The rows of one report of metrics."""
    at: dict[str, object] = {"agent_steps": int(agent_steps), "wall_s": float(wall_s)}
    return [at | {"name": name, "value": float(value)} for name, value in metrics.items()]


def row_values(row: Any) -> dict[str, Any]:
    """The columns of a row that is a dataclass."""
    return {f.name: getattr(row, f.name) for f in fields(row)}
