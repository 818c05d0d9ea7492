"""The networks, and their weights as plain arrays."""

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mario_dist.nets.config import NetworkConfig
from mario_dist.nets.init import orthogonal
from mario_dist.nets.torsos import build_torso
from mario_dist.types import Arrays, EnvSpec, Weights

Head = Literal["policy", "q", "dueling"]


class NetOut(NamedTuple):
    """logits: float32 [B, A], a Q-network's Q-values; value: float32 [B], a Q-network's largest Q-value."""

    logits_BA: Tensor
    value_B: Tensor


class ActorCritic(nn.Module):
    """A shared torso with a policy head and a value head. Takes stacks [B, K, H, W], uint8 or ``scaled``."""

    stochastic: ClassVar[bool] = True
    """Whether the logits are a distribution to draw from."""

    def __init__(self, config: NetworkConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.torso = build_torso(config, spec.frame_stack, spec.frame_shape)
        self.policy = orthogonal(nn.Linear(config.hidden, spec.n_actions), gain=0.01)
        self.value = orthogonal(nn.Linear(config.hidden, 1), gain=1.0)

    def forward(self, stack_BKHW: Tensor) -> NetOut:
        features = self.torso(scaled(stack_BKHW)).float()
        with _full_precision(features):
            return NetOut(self.policy(features), self.value(features).squeeze(-1))


class QNetwork(nn.Module):
    """Action values. Takes stacks [B, K, H, W], uint8 or ``scaled``.

    dueling: Q = V + A - mean A, from two streams with a hidden layer each (Wang et al. 2016, equation 9).
    """

    stochastic: ClassVar[bool] = False

    def __init__(self, config: NetworkConfig, spec: EnvSpec, *, dueling: bool) -> None:
        super().__init__()
        self.torso = build_torso(config, spec.frame_stack, spec.frame_shape)
        if dueling:
            self.advantage: nn.Module = _stream(config.hidden, spec.n_actions)
            self.value: nn.Module | None = _stream(config.hidden, 1)
        else:
            self.advantage = orthogonal(nn.Linear(config.hidden, spec.n_actions), gain=0.01)
            self.value = None

    def forward(self, stack_BKHW: Tensor) -> NetOut:
        features = self.torso(scaled(stack_BKHW)).float()
        with _full_precision(features):
            q_BA = self.advantage(features)
            if self.value is not None:
                q_BA = self.value(features) + q_BA - q_BA.mean(-1, keepdim=True)
        return NetOut(q_BA, q_BA.max(-1).values)


Network = ActorCritic | QNetwork


def build_network(config: NetworkConfig, spec: EnvSpec, seed: int, head: Head = "policy") -> Network:
    """A network with weights drawn from ``seed``, in the channels_last layout (faster on CPU and GPU)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Network = (
            ActorCritic(config, spec)
            if head == "policy"
            else QNetwork(config, spec, dueling=head == "dueling")
        )
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


def scaled(stack_BKHW: Tensor) -> Tensor:
    """uint8 stacks to [0, 1], in the layout that convolutions like; scaled ones stay as they are."""
    if stack_BKHW.dtype != torch.uint8:
        return stack_BKHW
    return stack_BKHW.to(dtype=torch.float32, memory_format=torch.channels_last) * (1.0 / 255.0)


def _full_precision(features: Tensor) -> torch.autocast:
    """For heads, whatever the torso was computed in: in bfloat16, values of 16 would be 0.06 apart."""
    return torch.autocast(features.device.type, enabled=False)


def _stream(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        orthogonal(nn.Linear(features, features)),
        nn.ReLU(),
        orthogonal(nn.Linear(features, outputs), gain=0.01),
    )
