"""What protocols said of a run's checkpoints, as rows to show."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mario_dist.store import CheckpointRow, EvaluationRow


@dataclass(frozen=True, slots=True)
class Judgement:
    """One evaluation of one checkpoint. ``by``: ``eval``, or ``training`` for those that training made.

    time_to_clear_s: (median, best) seconds of play; None where no one level was played or cleared.
    report: the whole ``EvalReport`` as a mapping.
    """

    agent_steps: int
    by: Literal["eval", "training"]
    protocol: str
    levels: tuple[str, ...]
    episodes: int
    clear_rate: float
    clear_rate_ci: tuple[float, float]
    x_mean: float
    x_iqm: float
    x_iqm_ci: tuple[float, float]
    time_to_clear_s: tuple[float, float] | None
    report: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def rank(self) -> tuple[float, float]:
        """By the rate that is certain: 10 of 10 episodes say less than 99 of 100."""
        return (self.clear_rate_ci[0], self.x_mean)


def judgements(evaluations: Iterable[EvaluationRow], checkpoints: Iterable[CheckpointRow]) -> list[Judgement]:
    """All evaluations of a run, by agent steps; those by ``mario-dist eval`` after training's own."""
    found = [_judgement(row.agent_steps, "training", row.evaluation) for row in checkpoints if row.evaluation]
    found += [_judgement(row.agent_steps, "eval", row.report) for row in evaluations]
    return sorted(found, key=lambda judgement: judgement.agent_steps)


def best(found: Sequence[Judgement], levels: Iterable[str]) -> Judgement | None:
    """The best one on just the run's own levels, or on any where there is none; the newest of equals."""
    wanted = set(levels)
    own = [judgement for judgement in found if set(judgement.levels) == wanted]
    return max(reversed(own or list(found)), key=lambda judgement: judgement.rank, default=None)


def newest_played(found: Sequence[Judgement]) -> list[Judgement]:
    """The evaluations of the newest checkpoint that has any whose episodes are known one by one."""
    known = [j for j in found if all("played" in level for level in j.report["per_level"].values())]
    newest = max((j.agent_steps for j in known), default=None)
    return [j for j in known if j.agent_steps == newest]


def played(found: Iterable[Judgement], level: str) -> tuple[list[int], list[str]]:
    """x-position and end of every episode of a level in these evaluations."""
    x_pos: list[int] = []
    ends: list[str] = []
    for judgement in found:
        episodes = judgement.report["per_level"].get(level, {}).get("played", {})
        x_pos += episodes.get("x_pos", [])
        ends += episodes.get("end", [])
    return x_pos, ends


def _judgement(agent_steps: int, by: Literal["eval", "training"], report: Mapping[str, Any]) -> Judgement:
    protocol, x, per_level = report["protocol"], report["x_pos"], report["per_level"]
    low, high = report["clear_rate_ci"]
    iqm_low, iqm_high = x["iqm_ci"]
    times = [level.get("seconds_to_clear") for level in per_level.values()]
    only = times[0] if len(times) == 1 else None
    name = protocol.get("name", "custom")
    return Judgement(
        agent_steps=agent_steps,
        by=by,
        protocol=f"{name} v{protocol['version']}" if "version" in protocol else str(name),
        levels=tuple(per_level),
        episodes=report["episodes"],
        clear_rate=report["clear_rate"],
        clear_rate_ci=(low, high),
        x_mean=x["mean"],
        x_iqm=x["iqm"],
        x_iqm_ci=(iqm_low, iqm_high),
        time_to_clear_s=(only["median"], only["best"]) if only else None,
        report=report,
    )
