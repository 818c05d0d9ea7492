"""Torsos: from a stack of frames, float32 [B, K, H, W] in [0, 1], to features [B, hidden]."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mario_dist.nets.config import NetworkConfig
from mario_dist.nets.init import orthogonal

_LEAST_DEVIATION = 1e-3

Torso = Callable[[int, tuple[int, int], int], nn.Sequential]


def build_torso(config: NetworkConfig, frame_stack: int, frame_shape: tuple[int, int]) -> nn.Sequential:
    """The torso that ``config`` names. Raises ``ValueError`` where the frames are too small for it."""
    torso = _TORSOS[config.torso](frame_stack, frame_shape, config.hidden)
    return nn.Sequential(Standardise(), *torso) if config.standardise else torso


def nature(frame_stack: int, frame_shape: tuple[int, int], hidden: int) -> nn.Sequential:
    """The CNN of Mnih et al. 2015: 32x8s4, 64x4s2, 64x3s1."""
    return _plain_cnn(((32, 8, 4), (64, 4, 2), (64, 3, 1)), frame_stack, frame_shape, hidden)


def small(frame_stack: int, frame_shape: tuple[int, int], hidden: int) -> nn.Sequential:
    """The CNN of Mnih et al. 2013: 16x8s4, 32x4s2. A third of the nature CNN's time on a CPU."""
    return _plain_cnn(((16, 8, 4), (32, 4, 2)), frame_stack, frame_shape, hidden)


def impala(frame_stack: int, frame_shape: tuple[int, int], hidden: int) -> nn.Sequential:
    """The ResNet of Espeholt et al. 2018: three stages of 16, 32 and 32 channels."""
    channels = (frame_stack, 16, 32, 32)
    stages = nn.Sequential(*(_ResidualStage(a, b) for a, b in pairwise(channels)), nn.ReLU(), nn.Flatten())
    return _with_head(stages, frame_stack, frame_shape, hidden)


def mlp(frame_stack: int, frame_shape: tuple[int, int], hidden: int) -> nn.Sequential:
    """Two layers on the raw pixels, for tiny frames."""
    pixels = frame_stack * frame_shape[0] * frame_shape[1]
    return nn.Sequential(
        nn.Flatten(),
        orthogonal(nn.Linear(pixels, hidden)),
        nn.ReLU(),
        orthogonal(nn.Linear(hidden, hidden)),
        nn.ReLU(),
    )


_TORSOS: dict[str, Torso] = {"nature": nature, "small": small, "impala": impala, "mlp": mlp}


def _plain_cnn(
    layers: Sequence[tuple[int, int, int]], frame_stack: int, frame_shape: tuple[int, int], hidden: int
) -> nn.Sequential:
    convs: list[nn.Module] = []
    channels = frame_stack
    for out_channels, kernel, stride in layers:
        convs += [orthogonal(nn.Conv2d(channels, out_channels, kernel, stride)), nn.ReLU()]
        channels = out_channels
    return _with_head(nn.Sequential(*convs, nn.Flatten()), frame_stack, frame_shape, hidden)


def _with_head(
    convs: nn.Sequential, frame_stack: int, frame_shape: tuple[int, int], hidden: int
) -> nn.Sequential:
    try:
        with torch.no_grad():
            features = convs(torch.zeros(1, frame_stack, *frame_shape)).shape[1]
    except RuntimeError as error:
        raise ValueError(
            f"frames of {frame_shape[0]}x{frame_shape[1]} are too small for this torso"
        ) from error
    return nn.Sequential(*convs, orthogonal(nn.Linear(features, hidden)), nn.ReLU())


class Standardise(nn.Module):
    """Each sample to mean 0 and deviation 1 over all its pixels (Ba et al. 2016, of the input)."""

    def forward(self, x_BKHW: Tensor) -> Tensor:
        # As rows of numbers, which channels_last are already: ten times as fast as over three dimensions.
        x_BHWK = x_BKHW.permute(0, 2, 3, 1)
        flat = nn.functional.layer_norm(x_BHWK.flatten(1), [x_BHWK[0].numel()], eps=_LEAST_DEVIATION**2)
        return flat.view(x_BHWK.shape).permute(0, 3, 1, 2)


class _ResidualStage(nn.Module):
    """Convolution, max-pool by 2, two residual blocks."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = orthogonal(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_residual_block(channels_out) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        for block in self.blocks:
            x = x + block(x)
        return x


def _residual_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        orthogonal(nn.Conv2d(channels, channels, 3, padding=1)),
        nn.ReLU(),
        orthogonal(nn.Conv2d(channels, channels, 3, padding=1)),
    )
