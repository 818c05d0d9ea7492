"""Rollouts: a policy acting in lanes, making unrolls."""

from mario_dist.rollout.policy import EpsilonGreedy, Policy, SamplingPolicy
from mario_dist.rollout.priorities import InitialPriorities
from mario_dist.rollout.stack import FrameStack
from mario_dist.rollout.worker import RolloutWorker

__all__ = ["EpsilonGreedy", "FrameStack", "InitialPriorities", "Policy", "RolloutWorker", "SamplingPolicy"]
