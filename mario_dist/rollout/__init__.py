"""Rollouts: a policy acting in lanes, making unrolls."""

from mario_dist.rollout.inference import Answer, Inference, InferenceServer, Look, Request, SharedInference
from mario_dist.rollout.policy import EpsilonGreedy, Policy, SamplingPolicy
from mario_dist.rollout.priorities import InitialPriorities
from mario_dist.rollout.stack import FrameStack
from mario_dist.rollout.worker import RolloutWorker

__all__ = [
    "Answer",
    "EpsilonGreedy",
    "FrameStack",
    "Inference",
    "InferenceServer",
    "InitialPriorities",
    "Look",
    "Policy",
    "Request",
    "RolloutWorker",
    "SamplingPolicy",
    "SharedInference",
]
