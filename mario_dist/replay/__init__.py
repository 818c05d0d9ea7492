"""Where experience waits for the learner."""

from mario_dist.replay.fifo import BoundedQueue
from mario_dist.replay.frames import planned_bytes
from mario_dist.replay.limiter import RateLimiter
from mario_dist.replay.prioritised import PrioritisedReplay
from mario_dist.replay.sharded import ShardedReplay, allocate, importance_weights, merge, total_stats

__all__ = [
    "BoundedQueue",
    "PrioritisedReplay",
    "RateLimiter",
    "ShardedReplay",
    "allocate",
    "importance_weights",
    "merge",
    "planned_bytes",
    "total_stats",
]
