"""Packages of policies: whatever network a configuration asks for, its package predicts the same."""

from pathlib import Path

import numpy as np
import pytest

from mario_dist.checkpoint import TrainState, load_checkpoint
from mario_dist.config import override, to_tree
from mario_dist.errors import UserError
from mario_dist.nets import get_weights
from mario_dist.registry import load_model
from mario_dist.registry.package import check_files, seal
from mario_dist.system.build import make_network
from mario_dist.system.judging import Policy
from mario_dist.system.models import model_name, observations, pack, policy_of, scores, weights_sha256


def fresh(*overrides: str) -> tuple[Policy, TrainState]:
    """A policy that was never trained, and its checkpoint."""
    config = override({}, overrides)
    network = make_network(config).eval()
    arrays = {f"learner.network.{name}": array for name, array in get_weights(network, 0).arrays.items()}
    meta = {"run_id": "r1", "counters": {"agent_steps": 5}, "config": to_tree(config)}
    return Policy(network, config, "here", "r1", 5), TrainState(arrays, meta)


@pytest.mark.parametrize(
    "overrides",
    [
        ("network.torso=nature", "env.frame_size=[84,84]"),
        ("network.torso=small", "network.standardise=true"),
        ("network.torso=impala", "env.frame_size=[42,42]", "network.hidden=32"),
        ("network.torso=mlp", "env.frame_size=[12,12]", "env.frame_stack=2", "env.actions=COMPLEX"),
        ("algo.name=apex", "network.hidden=32"),
        ("algo.name=apex", "algo.dueling=false", "network.hidden=32"),
        ("algo.name=impala", "network.hidden=32"),
    ],
    ids=" ".join,
)
def test_every_kind_of_network_predicts_the_same_from_its_package(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    policy, state = fresh(*overrides)
    package = tmp_path / "package"
    pack(package, policy, state, {"clear_rate": 0.5})
    check_files(package, seal(package))
    stack_BKHW = observations(policy)
    wanted_BA = scores(policy.network, stack_BKHW)
    predict = load_model(package)
    for batch in (1, 2, len(stack_BKHW)):
        np.testing.assert_allclose(predict(stack_BKHW[:batch]), wanted_BA[:batch], atol=1e-5)
    again = policy_of(load_checkpoint(package / "checkpoint"), "there")
    np.testing.assert_array_equal(scores(again.network, stack_BKHW), wanted_BA)
    assert weights_sha256(again.network) == weights_sha256(policy.network)


def test_observations_are_always_the_same_and_differ_among_themselves() -> None:
    policy, _ = fresh("network.hidden=32")
    first, second = observations(policy), observations(policy)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) > len(first) // 2


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("env.levels=[1-1]",), "mario-1-1-ppo"),
        (("env.levels=[1-1,4-2]", "algo.name=apex"), "mario-1-1+4-2-apex"),
        (("env.levels=[1-1,1-2,1-3,1-4,2-1]",), "mario-5-levels-7059db-ppo"),
    ],
)
def test_a_model_is_named_by_its_levels_and_algorithm(overrides: tuple[str, ...], name: str) -> None:
    assert model_name(override({}, overrides)) == name


# The second would take 92 GB.
@pytest.mark.parametrize("hidden", [33, 10_000_000])
def test_a_checkpoint_of_another_network_is_refused(hidden: int) -> None:
    _, state = fresh("network.hidden=32")
    tree = {**state.meta["config"], "network": {**state.meta["config"]["network"], "hidden": hidden}}
    with pytest.raises(UserError, match="does not fit this configuration"):
        policy_of(TrainState(state.arrays, {**state.meta, "config": tree}), "there")
