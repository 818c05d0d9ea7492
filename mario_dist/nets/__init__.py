"""Networks: torsos, heads, weights in and out."""

from mario_dist.nets.config import NetworkConfig
from mario_dist.nets.network import ActorCritic, NetOut, build_network, get_weights, set_weights

__all__ = ["ActorCritic", "NetOut", "NetworkConfig", "build_network", "get_weights", "set_weights"]
