"""Action values, plain and dueling."""

import pytest
import torch

from mario_dist.nets import NetworkConfig, QNetwork, build_network, scaled
from mario_dist.types import EnvSpec

SPEC = EnvSpec((40, 44), 3, ("a", "b", "c", "d", "e"), 4)


def build(head: str) -> QNetwork:
    network = build_network(NetworkConfig("small", 16), SPEC, 0, head)  # type: ignore[arg-type]
    assert isinstance(network, QNetwork)
    return network


def some_stacks(batch: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, 40, 44), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("head", ["q", "dueling"])
def test_values_are_the_largest_action_values(head: str) -> None:
    with torch.no_grad():
        out = build(head)(some_stacks())
    assert out.logits_BA.shape == (6, 5)
    assert torch.equal(out.value_B, out.logits_BA.max(-1).values)
    assert not QNetwork.stochastic


def test_dueling_is_value_plus_centred_advantage() -> None:
    """Wang et al. 2016, equation 9: the mean over actions is the value stream's, exactly."""
    network = build("dueling")
    with torch.no_grad():
        for parameter in network.advantage.parameters():  # type: ignore[union-attr]
            parameter.add_(0.3)
        features = network.torso(scaled(some_stacks()))
        value, advantage = network.value(features), network.advantage(features)  # type: ignore[misc, operator]
        q = network(some_stacks()).logits_BA
    torch.testing.assert_close(q.mean(-1, keepdim=True), value)
    torch.testing.assert_close(q - value, advantage - advantage.mean(-1, keepdim=True))


def test_scaled_stacks_give_what_raw_ones_give() -> None:
    network = build("dueling")
    with torch.no_grad():
        raw, ready = network(some_stacks()), network(scaled(some_stacks()))
    assert torch.equal(raw.logits_BA, ready.logits_BA)
