"""Super Mario Bros. as a vectorised environment, and a ROM-free probe with the same contract."""

from collections.abc import Sequence

from mario_dist.env.config import LEVELS, EnvConfig
from mario_dist.env.mario import FrameCallback, MarioVectorEnv
from mario_dist.env.probe import ProbeVectorEnv
from mario_dist.env.vector import VectorEnv

__all__ = [
    "LEVELS",
    "EnvConfig",
    "FrameCallback",
    "MarioVectorEnv",
    "ProbeVectorEnv",
    "VectorEnv",
    "make_env",
]


def make_env(
    config: EnvConfig,
    n_lanes: int,
    seed: Sequence[int],
    threads: int = 1,
    on_frame: FrameCallback | None = None,
) -> VectorEnv:
    """The environment that ``config`` describes. The probe has no frames for ``on_frame``."""
    if config.kind == "probe":
        return ProbeVectorEnv(config, n_lanes, seed)
    return MarioVectorEnv(config, n_lanes, seed, threads, on_frame)
