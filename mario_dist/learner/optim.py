"""The optimiser, and its state as plain arrays."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mario_dist.types import Arrays


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """lr: linear schedule over the run. max_grad_norm: to which each gradient is clipped."""

    lr: tuple[float, float]
    eps: float
    max_grad_norm: float
    kind: Literal["adam", "rmsprop"] = "adam"


def descend(optimiser: torch.optim.Optimizer, network: nn.Module, loss: Tensor, max_norm: float) -> Tensor:
    """One step down the gradient of ``loss``, clipped to ``max_norm``; the norm that it had before."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
    norm = nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimiser.step()
    return norm.detach()


def make_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Adam with its fused kernel, or RMSProp with decay 0.99 and no momentum (Espeholt et al. 2018).

    The learning rate is set before every step, by the schedule.
    """
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=0.0, alpha=0.99, eps=config.eps, foreach=True)
    return torch.optim.Adam(network.parameters(), lr=0.0, eps=config.eps, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def optimiser_arrays(optimiser: torch.optim.Optimizer, prefix: str) -> Arrays:
    """Every tensor of the optimiser's state, by parameter number and name."""
    arrays: Arrays = {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, tensor in entries.items():
            arrays[f"{prefix}{index}.{name}"] = tensor.detach().cpu().numpy().copy()
    return arrays


def restore_optimiser(optimiser: torch.optim.Optimizer, arrays: Arrays, prefix: str) -> None:
    """The inverse of ``optimiser_arrays``; PyTorch moves the tensors to the parameters' device.

    The fused kernel walks parameters and their moments by memory address, so a moment must lie in memory
    as its parameter does (channels_last, say), not as it lay in the file.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        if key.startswith(prefix):
            number, name = key.removeprefix(prefix).split(".", 1)
            index, tensor = int(number), torch.tensor(array)
            if tensor.shape == parameters[index].shape:
                tensor = torch.empty_like(parameters[index], requires_grad=False).copy_(tensor)
            state.setdefault(index, {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
