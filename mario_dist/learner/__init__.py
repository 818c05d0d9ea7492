"""The learners: experience in, weights out."""

from mario_dist.learner.learner import Learner, network_arrays
from mario_dist.learner.replay_learner import ReplayLearner

__all__ = ["Learner", "ReplayLearner", "network_arrays"]
