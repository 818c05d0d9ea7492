"""Rollouts: a policy acting in lanes, making unrolls."""

from mario_dist.rollout.stack import FrameStack
from mario_dist.rollout.worker import RolloutWorker

__all__ = ["FrameStack", "RolloutWorker"]
