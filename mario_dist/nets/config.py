"""What a network is made of, as configuration."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A torso and its width.

    torso: ``nature`` (Mnih et al. 2015), ``small`` (16x8s4, 32x4s2: for CPUs), ``impala`` (the ResNet of
    Espeholt et al. 2018) or ``mlp`` (for tiny frames).
    hidden: width of the last layer of the torso.
    standardise: give the torso each stack with mean 0 and deviation 1. As they are, nine tenths of Mario's
    pixels are one sky of 0.55, and everything else lies within 0.08 of it.
    """

    torso: Literal["nature", "small", "impala", "mlp"] = "small"
    hidden: int = 256
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError("hidden must be at least 1")
