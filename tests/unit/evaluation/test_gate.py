"""What a policy must show before it is promoted."""

from pathlib import Path
from typing import Any

import pytest

from mario_dist.config import load_settings
from mario_dist.errors import UserError
from mario_dist.evaluation import Gate, objections

GATES = sorted((Path(__file__).parents[3] / "configs" / "gates").glob("*.yaml"))


def report(cleared: int, episodes: int = 100) -> dict[str, Any]:
    return {"clear_rate": cleared / episodes, "episodes": episodes}


@pytest.mark.parametrize(
    ("cleared", "champion", "says"),
    [
        (50, None, []),
        (49, None, ["it clears 49% of 100 episodes, and the gate asks for 50%"]),
        # Newcombe's interval of 88 and 96 in 100 is -16.2 % to -0.3 %, of 89 and 96 it is -15.0 % to 0.5 %.
        (89, 96, []),
        (88, 96, ["it is worse than the champion: 88% against 96%, and the difference is -16% to -0%"]),
        (100, 50, []),
    ],
)
def test_a_policy_passes_or_hears_why_not(cleared: int, champion: int | None, says: list[str]) -> None:
    champions = None if champion is None else report(champion)
    assert objections(Gate(), report(cleared), champions) == says


def test_both_objections_are_told_and_the_second_can_be_switched_off() -> None:
    assert len(objections(Gate(), report(10), report(90))) == 2
    assert len(objections(Gate(not_worse=False), report(10), report(90))) == 1
    assert objections(Gate(not_worse=False, min_clear_rate=0.1), report(10), report(90)) == []


def test_the_protocol_is_the_named_one_on_the_levels_with_seed_and_episodes() -> None:
    asked = Gate(protocol="sticky-25", episodes=7, seed=3).asks(("1-1", "1-2"))
    assert (asked.name, asked.episodes, asked.seed, asked.levels) == ("sticky-25", 7, 3, ("1-1", "1-2"))


@pytest.mark.parametrize("path", GATES, ids=lambda p: p.name)
def test_every_gate_of_the_repository_loads(path: Path) -> None:
    gate = load_settings(Gate, path)
    assert gate != Gate()
    assert load_settings(Gate, path, ["min_clear_rate=0.25"]).min_clear_rate == 0.25


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("episode=3", "unknown key episode; did you mean episodes?"),
        ("episodes=0", "episodes must be at least 1"),
        ("min_clear_rate=2", "min_clear_rate must be from 0 to 1"),
        ("protocol=hard", "protocol: input should be 'jitter-30'"),
    ],
)
def test_a_bad_gate_is_one_clear_line(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_settings(Gate, None, [override])
