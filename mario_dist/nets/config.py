"""What a network is made of, as configuration."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A torso and its width.

    torso: ``nature`` (Mnih et al. 2015), ``small`` (16x8s4, 32x4s2: for CPUs), ``impala`` (the ResNet of
    Espeholt et al. 2018) or ``mlp`` (for tiny frames).
    hidden: width of the last layer of the torso.
    """

    torso: Literal["nature", "small", "impala", "mlp"] = "small"
    hidden: int = 256

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError("hidden must be at least 1")
