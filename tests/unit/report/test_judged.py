"""Evaluations as rows."""

from typing import Any

import pytest

from mario_dist.report.judged import best, judgements, newest_played, played
from mario_dist.store import CheckpointRow, EvaluationRow


def report(
    rate: float, interval: tuple[float, float], levels: tuple[str, ...] = ("1-1",), **level: Any
) -> dict[str, Any]:
    """An ``EvalReport`` as the store gives it back: tuples are lists, and old ones lack keys."""
    return {
        "clear_rate": rate,
        "clear_rate_ci": list(interval),
        "x_pos": {"mean": 100.0, "median": 90.0, "iqm": 95.0, "iqm_ci": [80.0, 110.0]},
        "episodes": 10,
        "per_level": {name: {"clear_rate": rate, **level} for name in levels},
        "protocol": {"name": "jitter-30", "version": 2},
    }


def evaluation(agent_steps: int, document: dict[str, Any]) -> EvaluationRow:
    return EvaluationRow(agent_steps=agent_steps, path=f"c/{agent_steps}", protocol="{}", report=document)


def test_evaluations_of_both_kinds_are_in_the_order_of_training() -> None:
    checkpoints = [
        CheckpointRow(agent_steps=20, path="c/20", kind="best", evaluation=report(0.5, (0.2, 0.8))),
        CheckpointRow(agent_steps=30, path="c/30", kind="latest"),
    ]
    clears = {"seconds_to_clear": {"mean": 30.0, "median": 28.0, "best": 25.0}}
    rows = [evaluation(20, report(0.4, (0.3, 0.5), **clears)), evaluation(10, report(0, (0, 0.3)))]
    found = judgements(rows, checkpoints)
    assert [(j.agent_steps, j.by) for j in found] == [(10, "eval"), (20, "training"), (20, "eval")]
    assert [j.time_to_clear_s for j in found] == [None, None, (28.0, 25.0)]
    assert found[2].protocol == "jitter-30 v2"


def test_the_best_is_the_one_that_is_certain_and_on_the_runs_own_levels() -> None:
    lucky, sure = report(1.0, (0.72, 1.0)), report(0.99, (0.95, 1.0))
    elsewhere = report(1.0, (0.96, 1.0), levels=("1-1", "1-2"))
    found = judgements([evaluation(1, lucky), evaluation(2, sure), evaluation(3, elsewhere)], [])
    assert best(found, ["1-1"]) is found[1]
    assert best(found, ["8-4"]) is found[2]
    assert best([], ["1-1"]) is None
    again = judgements([evaluation(1, sure), evaluation(2, sure)], [])
    chosen = best(again, ["1-1"])
    assert chosen is not None
    assert chosen.agent_steps == 2


@pytest.mark.parametrize("newest_has_episodes", [True, False])
def test_the_newest_checkpoints_episodes_are_joined(newest_has_episodes: bool) -> None:
    def with_episodes(*x_pos: int) -> dict[str, Any]:
        return report(0, (0, 1), played={"x_pos": list(x_pos), "end": ["death"] * len(x_pos)})

    rows = [
        evaluation(1, with_episodes(5)),
        evaluation(2, with_episodes(6, 7)),
        evaluation(2, with_episodes(8)),
    ]
    if not newest_has_episodes:
        rows.append(evaluation(3, report(0, (0, 1))))
    found = newest_played(judgements(rows, []))
    assert played(found, "1-1") == ([6, 7, 8], ["death"] * 3)
    assert played(found, "1-2") == ([], [])
    assert newest_played([]) == []
