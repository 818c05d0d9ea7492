"""The learner: batches in, weights out."""

from mario_dist.learner.learner import Learner, network_arrays

__all__ = ["Learner", "network_arrays"]
