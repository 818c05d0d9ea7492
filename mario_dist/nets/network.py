"""The policy and value network, and its weights as plain arrays."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mario_dist.nets.config import NetworkConfig
from mario_dist.nets.init import orthogonal
from mario_dist.nets.torsos import build_torso
from mario_dist.types import Arrays, EnvSpec, Weights


class NetOut(NamedTuple):
    """logits: float32 [B, A]; value: float32 [B]."""

    logits_BA: Tensor
    value_B: Tensor


class ActorCritic(nn.Module):
    """A shared torso with a policy head and a value head. Takes uint8 stacks [B, K, H, W]."""

    def __init__(self, config: NetworkConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.torso = build_torso(config, spec.frame_stack, spec.frame_shape)
        self.policy = orthogonal(nn.Linear(config.hidden, spec.n_actions), gain=0.01)
        self.value = orthogonal(nn.Linear(config.hidden, 1), gain=1.0)

    def forward(self, stack_BKHW: Tensor) -> NetOut:
        x = stack_BKHW.to(dtype=torch.float32, memory_format=torch.channels_last) * (1.0 / 255.0)
        features = self.torso(x)
        return NetOut(self.policy(features).float(), self.value(features).float().squeeze(-1))


def build_network(config: NetworkConfig, spec: EnvSpec, seed: int) -> ActorCritic:
    """A network with weights drawn from ``seed``, in the channels_last layout (faster on CPU and GPU)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ActorCritic(config, spec)
    return network.to(memory_format=torch.channels_last)


def get_weights(network: nn.Module, version: int) -> Weights:
    """A copy of the parameters as float32 NumPy arrays."""
    return Weights(version, {k: v.detach().cpu().numpy().copy() for k, v in network.state_dict().items()})


def set_weights(network: nn.Module, arrays: Arrays) -> None:
    """Load parameters, keeping the network's memory layout.

    Raises ``ValueError`` where names or shapes are another network's.
    """
    own = network.state_dict()
    if own.keys() != arrays.keys():
        raise ValueError("these weights are of another network: its layers have other names")
    for name, tensor in own.items():
        if tuple(tensor.shape) != arrays[name].shape:
            shapes = f"{name} is {arrays[name].shape}, not {tuple(tensor.shape)}"
            raise ValueError(f"these weights are of another network: {shapes}")
    with torch.no_grad():
        for name, tensor in own.items():
            # torch.tensor copies: the arrays may be read-only views of shared memory.
            tensor.copy_(torch.tensor(arrays[name]))
