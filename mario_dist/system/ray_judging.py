"""A protocol's blocks as Ray tasks."""

import time

import ray
import torch

from mario_dist.config import RunConfig
from mario_dist.evaluation import Block, EvalProtocol, blocks, play_block, settled, summarise
from mario_dist.nets import Network, get_weights, set_weights
from mario_dist.system.build import make_network
from mario_dist.system.ray import get, put
from mario_dist.system.ray_cluster import connected
from mario_dist.types import Episode, EvalReport, Weights


@ray.remote
def _play(config: RunConfig, weights: Weights, protocol: EvalProtocol, block: Block) -> list[Episode]:
    torch.set_num_threads(1)
    network = make_network(config)
    set_weights(network, weights.arrays)
    return play_block(network.eval(), config.env, protocol, block)


def evaluate_on_ray(config: RunConfig, network: Network, protocol: EvalProtocol, address: str) -> EvalReport:
    """As ``evaluation.evaluate``, each block a task of one core: ``local`` starts Ray here.

    Raises ``UserError`` where Ray cannot be reached.
    """
    protocol = settled(protocol, network)
    with connected(None if address == "local" else address, None, cores=1):
        started = time.monotonic()
        weights = put(get_weights(network, 0))
        played = get([_play.remote(config, weights, protocol, block) for block in blocks(protocol)])
        seconds = time.monotonic() - started
    return summarise([e for block in played for e in block], protocol, seconds)
