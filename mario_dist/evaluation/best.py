"""Which episode of a report was the best, and where in its protocol it was played."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mario_dist.evaluation.protocol import Block, EvalProtocol, blocks
from mario_dist.types import Episode


@dataclass(frozen=True, slots=True)
class Played:
    """One episode of a report: number ``index`` of its level's, x_pos in pixels, length in agent steps."""

    level: str
    index: int
    end: str
    x_pos: int
    agent_steps: int

    def is_of(self, episode: Episode) -> bool:
        """Whether an episode that was played again went as this one did."""
        return (self.level, self.end, self.x_pos, self.agent_steps) == (
            episode.level,
            episode.end,
            episode.x_pos_max,
            episode.length,
        )


def best_played(per_level: Mapping[str, Mapping[str, Any]]) -> Played:
    """The best episode of an ``EvalReport.per_level``: the quickest to a flag, else the furthest."""
    episodes = [
        Played(level, index, *values)
        for level, result in per_level.items()
        for index, values in enumerate(
            zip(*(result["played"][key] for key in ("end", "x_pos", "agent_steps")), strict=True)
        )
    ]
    return max(episodes, key=_rank)


def locate(protocol: EvalProtocol, played: Played) -> tuple[Block, int]:
    """The block of ``protocol`` in which an episode was played, and its number there.

    A report lists a level's episodes block after block, in the order in which they began. Raises
    ``ValueError`` where the protocol has no such episode.
    """
    number = played.index
    for block in blocks(protocol):
        if block.level != played.level:
            continue
        if number < block.episodes:
            return block, number
        number -= block.episodes
    raise ValueError(f"the protocol has no episode {played.index} of {played.level}")


def _rank(played: Played) -> tuple[bool, int, int]:
    # Where a pole stands says nothing of who reached it.
    flag = played.end == "flag"
    return flag, 0 if flag else played.x_pos, -played.agent_steps
