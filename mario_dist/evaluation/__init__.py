"""Fixed protocols that judge weights, and the statistics of what they find."""

from mario_dist.evaluation.policy import Player
from mario_dist.evaluation.protocol import EvalProtocol, evaluate, summarise

__all__ = ["EvalProtocol", "Player", "evaluate", "summarise"]
