"""Fixed protocols that judge weights, and the statistics of what they find."""

from mario_dist.evaluation.best import Played, best_played, locate
from mario_dist.evaluation.comparison import Difference, compare
from mario_dist.evaluation.gate import Gate, objections
from mario_dist.evaluation.policy import Player
from mario_dist.evaluation.protocol import (
    SETTINGS,
    Block,
    BlockPlayer,
    EvalProtocol,
    blocks,
    evaluate,
    play_block,
    read_protocol,
    settled,
    summarise,
)

__all__ = [
    "SETTINGS",
    "Block",
    "BlockPlayer",
    "Difference",
    "EvalProtocol",
    "Gate",
    "Played",
    "Player",
    "best_played",
    "blocks",
    "compare",
    "evaluate",
    "locate",
    "objections",
    "play_block",
    "read_protocol",
    "settled",
    "summarise",
]
