import pytest
import torch
from torch import Tensor, nn

from mario_dist.nets import NetworkConfig
from mario_dist.nets.init import orthogonal
from mario_dist.nets.torsos import build_torso

# The smallest frame of which the convolutions leave a pixel.
SMALLEST = {"nature": 36, "small": 20, "impala": 1, "mlp": 1}


@pytest.mark.parametrize("torso", SMALLEST)
@pytest.mark.parametrize("frame", ["smallest", "84x84", "wide"])
def test_features_of_every_torso(torso: str, frame: str) -> None:
    shape = {"smallest": (SMALLEST[torso],) * 2, "84x84": (84, 84), "wide": (40, 57)}[frame]
    features = build_torso(NetworkConfig(torso, hidden=11), 3, shape)(torch.rand(2, 3, *shape))  # type: ignore[arg-type]
    assert features.shape == (2, 11)
    assert features.dtype == torch.float32
    assert (features >= 0).all()  # every torso ends in a ReLU


@pytest.mark.parametrize("torso", ["nature", "small"])
def test_frames_too_small_for_the_convolutions_are_refused(torso: str) -> None:
    too_small = SMALLEST[torso] - 1
    with pytest.raises(ValueError, match=f"frames of {too_small}x84 are too small"):
        build_torso(NetworkConfig(torso), 4, (too_small, 84))  # type: ignore[arg-type]


def convolutions(torso: nn.Module) -> list[tuple[int, int, int, int]]:
    return [
        (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0])
        for c in torso.modules()
        if isinstance(c, nn.Conv2d)
    ]


def test_the_layers_are_those_of_the_papers() -> None:
    nature = build_torso(NetworkConfig("nature", 24), 4, (84, 84))
    assert convolutions(nature) == [(4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
    assert nature[-2].weight.shape == (24, 64 * 7 * 7)
    small = build_torso(NetworkConfig("small", 24), 4, (84, 84))
    assert convolutions(small) == [(4, 16, 8, 4), (16, 32, 4, 2)]
    assert small[-2].weight.shape == (24, 32 * 9 * 9)
    impala = build_torso(NetworkConfig("impala", 24), 4, (84, 84))
    stages = [(4, 16), (16, 32), (32, 32)]
    assert convolutions(impala) == [
        (c, out, 3, 1) for first, out in stages for c in (first, out, out, out, out)
    ]
    assert impala[-2].weight.shape == (24, 32 * 11 * 11)


def rows_are_orthogonal(weight: Tensor, gain: float) -> bool:
    flat = weight.detach().flatten(1).double()
    small = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    return torch.allclose(small, gain**2 * torch.eye(len(small), dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("torso", SMALLEST)
def test_every_layer_begins_orthogonal_with_zero_bias(torso: str) -> None:
    built = build_torso(NetworkConfig(torso, 24), 2, (40, 40))  # type: ignore[arg-type]
    layers = [m for m in built.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers
    for layer in layers:
        assert rows_are_orthogonal(layer.weight, gain=2**0.5)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_orthogonal_takes_a_gain_and_layers_without_bias() -> None:
    assert rows_are_orthogonal(orthogonal(nn.Linear(9, 4, bias=False), gain=0.01).weight, gain=0.01)


def test_a_standardising_torso_sees_neither_brightness_nor_contrast() -> None:
    plain = build_torso(NetworkConfig(hidden=9), 2, (30, 24))
    torso = build_torso(NetworkConfig(hidden=9, standardise=True), 2, (30, 24))
    nn.Sequential(*list(torso)[1:]).load_state_dict(plain.state_dict())
    x = torch.rand(5, 2, 30, 24, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([(s - s.mean()) / s.std(correction=0) for s in x])
    torch.testing.assert_close(torso(x), plain(by_hand), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torso(0.1 * x + 0.7), torso(x), atol=1e-3, rtol=1e-2)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(torso(channels_last), torso(x), atol=1e-5, rtol=1e-5)
    assert (torso(x) - plain(x)).abs().max() > 0.1


def test_a_black_picture_is_standardised_too() -> None:
    torso = build_torso(NetworkConfig(hidden=9, standardise=True), 2, (30, 24))
    assert torso(torch.zeros(1, 2, 30, 24)).isfinite().all()
