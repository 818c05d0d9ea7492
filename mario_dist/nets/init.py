"""How weights begin."""

import math

from torch import nn


def orthogonal[M: (nn.Linear, nn.Conv2d)](layer: M, gain: float = math.sqrt(2.0)) -> M:
    """Orthogonal weights with this gain and zero biases (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
