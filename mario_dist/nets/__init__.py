"""Networks: torsos, heads, weights in and out."""

from mario_dist.nets.config import NetworkConfig
from mario_dist.nets.network import (
    ActorCritic,
    Head,
    NetOut,
    Network,
    QNetwork,
    build_network,
    get_weights,
    scaled,
    set_weights,
)

__all__ = [
    "ActorCritic",
    "Head",
    "NetOut",
    "Network",
    "NetworkConfig",
    "QNetwork",
    "build_network",
    "get_weights",
    "scaled",
    "set_weights",
]
