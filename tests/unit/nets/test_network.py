from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mario_dist.nets import ActorCritic, NetworkConfig, build_network, get_weights, set_weights
from mario_dist.types import EnvSpec

SPEC = EnvSpec((40, 44), 3, ("a", "b", "c", "d", "e"), 4)
TORSOS = ("nature", "small", "impala", "mlp")


def build(torso: str = "small", seed: int = 0, hidden: int = 16, spec: EnvSpec = SPEC) -> ActorCritic:
    return build_network(NetworkConfig(torso, hidden), spec, seed)  # type: ignore[arg-type]


def some_stacks(batch: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 40, 44), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("torso", TORSOS)
def test_logits_and_values_of_every_torso(torso: str) -> None:
    network = build(torso)
    out = network(some_stacks())
    assert (out.logits_BA.shape, out.value_B.shape) == ((6, 5), (6,))
    assert out.logits_BA.dtype == out.value_B.dtype == torch.float32
    assert torch.isfinite(out.logits_BA).all()
    one = network(some_stacks()[2:3])
    torch.testing.assert_close(one.value_B[0], out.value_B[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.logits_BA[0], out.logits_BA[2], rtol=1e-4, atol=1e-4)


def test_pixels_are_seen_as_parts_of_255() -> None:
    network, seen = build("mlp"), []
    network.torso.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.full((1, 3, 40, 44), 255, dtype=torch.uint8))
    network(torch.full((1, 3, 40, 44), 51, dtype=torch.uint8))
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 40, 44))
    torch.testing.assert_close(seen[1], torch.full((1, 3, 40, 44), 0.2))


def test_outputs_are_float32_under_autocast() -> None:
    network = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(some_stacks())
    assert out.logits_BA.dtype == out.value_B.dtype == torch.float32


def test_a_new_policy_is_nearly_uniform() -> None:
    """A gain of 0.01 on the policy head: no action is preferred before anything was learned."""
    network = build("nature")
    assert network(some_stacks()).logits_BA.softmax(-1).sub(0.2).abs().max() < 0.02
    weight = network.policy.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 1e-4 * torch.eye(5), atol=1e-8, rtol=1e-3)
    assert network.value.weight.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert not network.policy.bias.any()
    assert not network.value.bias.any()


@pytest.mark.parametrize("torso", TORSOS)
def test_a_seed_names_the_weights(torso: str) -> None:
    first, again, other = (get_weights(build(torso, seed), 0).arrays for seed in (7, 7, 8))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    build(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)  # and the weights do not depend on it
    weights = get_weights(build(seed=5), 0).arrays
    torch.manual_seed(123)
    assert all(np.array_equal(a, weights[name]) for name, a in get_weights(build(seed=5), 0).arrays.items())


@pytest.mark.parametrize("torso", TORSOS)
def test_weights_go_out_and_in_unchanged(torso: str) -> None:
    source, target = build(torso, seed=1), build(torso, seed=2)
    weights = get_weights(source, version=9)
    assert weights.version == 9
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in weights.arrays.values())
    set_weights(target, weights.arrays)
    stacks = some_stacks()
    assert torch.equal(source(stacks).logits_BA, target(stacks).logits_BA)
    assert torch.equal(source(stacks).value_B, target(stacks).value_B)
    back = get_weights(target, version=9).arrays
    assert all(np.array_equal(back[name], array) for name, array in weights.arrays.items())


def test_weights_are_copies_both_ways() -> None:
    network = build(seed=1)
    arrays = get_weights(network, 0).arrays
    kept = {name: array.copy() for name, array in arrays.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(arrays[name], kept[name]) for name in kept)
    set_weights(network, arrays)
    for array in arrays.values():
        array += 1.0
    assert all(np.array_equal(a, kept[name]) for name, a in get_weights(network, 0).arrays.items())


def test_weights_from_read_only_memory() -> None:
    """As Ray's object store gives them; PyTorch would warn of a view, and warnings are errors here."""
    arrays = get_weights(build(seed=1), 0).arrays
    for array in arrays.values():
        array.flags.writeable = False
    set_weights(build(seed=2), arrays)


def is_channels_last(network: ActorCritic) -> bool:
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    return bool(weights) and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize("torso", ["nature", "small", "impala"])
def test_the_layout_stays_channels_last(torso: str) -> None:
    network = build(torso, seed=1)
    assert is_channels_last(network)
    set_weights(network, get_weights(build(torso, seed=2), 0).arrays)
    assert is_channels_last(network)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"torso": "mlp"}, "other names"),
        ({"torso": "nature"}, "other names"),
        ({"hidden": 17}, r"\(17, "),
        ({"spec": EnvSpec((40, 44), 3, ("a", "b"), 4)}, "policy.weight is"),
        ({"spec": EnvSpec((40, 44), 4, SPEC.action_names, 4)}, "torso.0.weight is"),
    ],
)
def test_weights_of_another_network_are_refused_whole(other: dict[str, Any], message: str) -> None:
    network = build(seed=3)
    before = get_weights(network, 0).arrays
    with pytest.raises(ValueError, match=f"another network.*{message}"):
        set_weights(network, get_weights(build(**other), 0).arrays)
    assert all(np.array_equal(a, before[name]) for name, a in get_weights(network, 0).arrays.items())


def test_a_hidden_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        NetworkConfig(hidden=0)
