"""Which episode was the best, and where a report's episodes were played."""

from typing import Any

import pytest

from mario_dist.evaluation import EvalProtocol, Played, best_played, blocks, locate


def result(*episodes: tuple[str, int, int]) -> dict[str, Any]:
    end, x_pos, agent_steps = zip(*episodes, strict=True)
    return {"played": {"end": list(end), "x_pos": list(x_pos), "agent_steps": list(agent_steps)}}


def test_without_a_flag_the_furthest_is_the_best_and_of_those_the_quickest() -> None:
    level = result(("death", 900, 90), ("stall", 1200, 400), ("death", 1200, 150), ("time", 3, 1))
    assert best_played({"1-1": level}) == Played("1-1", 2, "death", 1200, 150)


def test_a_flag_is_better_than_any_distance_and_the_quickest_flag_the_best() -> None:
    per_level = {
        "1-1": result(("flag", 3161, 341), ("death", 3170, 200), ("flag", 3159, 303)),
        "1-2": result(("death", 5000, 10), ("flag", 3100, 310)),
    }
    assert best_played(per_level) == Played("1-1", 2, "flag", 3159, 303)


@pytest.mark.parametrize("episodes", [1, 50, 51, 120])
def test_episodes_are_numbered_block_after_block(episodes: int) -> None:
    protocol = EvalProtocol(("1-1", "1-2"), episodes=episodes)
    expected = [(block, number) for block in blocks(protocol) for number in range(block.episodes)]
    found = [
        locate(protocol, Played(level, index, "death", 0, 1))
        for level in protocol.levels
        for index in range(episodes)
    ]
    assert found == expected


@pytest.mark.parametrize(("level", "index"), [("1-1", 3), ("1-2", 0)])
def test_an_episode_that_the_protocol_has_not_is_refused(level: str, index: int) -> None:
    with pytest.raises(ValueError, match="has no episode"):
        locate(EvalProtocol(("1-1",), episodes=3), Played(level, index, "death", 0, 1))
