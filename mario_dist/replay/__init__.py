"""Where experience waits for the learner."""

from mario_dist.replay.fifo import BoundedQueue

__all__ = ["BoundedQueue"]
