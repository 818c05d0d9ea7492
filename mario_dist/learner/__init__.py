"""The learners: experience in, weights out."""

from mario_dist.learner.learner import Learner, StagedBatch, network_arrays
from mario_dist.learner.optim import OptimiserConfig
from mario_dist.learner.replay_learner import ReplayLearner

__all__ = ["Learner", "OptimiserConfig", "ReplayLearner", "StagedBatch", "network_arrays"]
