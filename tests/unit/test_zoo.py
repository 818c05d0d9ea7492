"""The zoo: what comes with the package loads, is small, and holds up by its own report."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mario_dist import config as configuration
from mario_dist.checkpoint import TrainState, load_checkpoint
from mario_dist.cli.target import load_policy, resume_state
from mario_dist.config import RunConfig, to_tree
from mario_dist.errors import UserError
from mario_dist.evaluation import SETTINGS, EvalProtocol, evaluate
from mario_dist.learner import network_arrays
from mario_dist.nets import get_weights
from mario_dist.system.build import make_network
from mario_dist.system.run import _unlike
from mario_dist.types import part
from mario_dist.zoo import add_to_zoo, half_precision, zoo_checkpoint, zoo_entry, zoo_names

MAX_BYTES = 3_000_000


@pytest.fixture
def state(probe_config: Callable[..., RunConfig]) -> TrainState:
    config = probe_config()
    network = get_weights(make_network(config), 0).arrays
    arrays = {f"learner.network.{name}": array for name, array in network.items()}
    meta = {
        "run_id": "corridor-1",
        "mlflow_run_id": "abc",
        "counters": {"agent_steps": 512, "iterations": 8, "episodes": 9},
        "workers": 1,
        "wall_s": 60.0,
        "config": to_tree(config),
    }
    return TrainState({**arrays, "learner.optimiser.0.step": np.zeros(3), "worker.0.x": np.zeros(3)}, meta)


def test_the_network_alone_is_kept_in_half_precision(state: TrainState, tmp_path: Path) -> None:
    path = add_to_zoo("corridor", half_precision(state), {"clear_rate": 1.0}, {"cores": 2}, tmp_path)
    assert path == tmp_path / "corridor"
    assert zoo_names(tmp_path) == ["corridor"]
    kept = load_checkpoint(zoo_checkpoint("corridor", tmp_path))
    assert all(name.startswith("learner.network.") for name in kept.arrays)
    for name, array in kept.arrays.items():
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, state.arrays[name], atol=1e-3)
    entry = zoo_entry("corridor", tmp_path)
    assert entry["evaluation"] == {"clear_rate": 1.0}
    assert entry["origin"] == {"cores": 2}
    assert entry["run_id"] == "corridor-1"
    assert "workers" not in entry


def test_a_better_one_takes_the_place_of_the_one_before(state: TrainState, tmp_path: Path) -> None:
    small = half_precision(state)
    add_to_zoo("corridor", small, {"clear_rate": 0.5}, {}, tmp_path)
    later = TrainState(small.arrays, {**small.meta, "counters": {"agent_steps": 1024}})
    add_to_zoo("corridor", later, {"clear_rate": 0.9}, {}, tmp_path)
    assert zoo_entry("corridor", tmp_path)["evaluation"] == {"clear_rate": 0.9}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corridor"]


def test_what_the_zoo_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="there is no zoo:9-9; the zoo has "):
        zoo_checkpoint("9-9")
    with pytest.raises(UserError, match=r"there is no zoo:\.\./secrets"):
        load_policy("zoo:../secrets")


def test_a_network_alone_is_to_begin_with_and_not_to_resume() -> None:
    for ref in ("zoo:1-1", str(zoo_checkpoint("1-1"))):
        with pytest.raises(
            UserError, match=f"{ref} is a network alone; begin with it by mario-dist train --init"
        ):
            resume_state(ref)


def test_beginning_with_a_network_that_saw_other_pictures_is_told() -> None:
    init = load_checkpoint(zoo_checkpoint("1-1"))
    env = configuration.parse(init.meta["config"]).env
    assert _unlike(env, init) == ""
    other = dataclasses.replace(env, frame_skip=4, show_buttons=False, noop_max=0)
    assert _unlike(other, init) == ", which learned with other env.frame_skip, env.show_buttons"


@pytest.mark.parametrize("name", zoo_names())
def test_every_policy_of_the_zoo_loads_and_says_how_good_it_is(name: str) -> None:
    folder = zoo_checkpoint(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    entry = zoo_entry(name)
    report, levels = entry["evaluation"], entry["config"]["env"]["levels"]
    assert report["episodes"] == 100 * len(levels)
    assert report["protocol"]["name"] in ("jitter-30", "jitter-30-greedy")
    assert list(report["per_level"]) == levels
    training = configuration.parse(entry["config"])
    assert report["protocol"]["seed"] not in (training.evaluation.seed, training.stop.seed, training.seed)
    policy = load_policy(f"zoo:{name}")
    assert policy.source == str(folder.resolve())
    arrays = network_arrays(part(load_checkpoint(folder).arrays, "learner."))
    for key, array in get_weights(policy.network, 0).arrays.items():
        np.testing.assert_array_equal(array, arrays[key].astype(np.float32))
    assert dataclasses.replace(policy.config.env, emulator="auto") == policy.config.env


@pytest.mark.parametrize("name", zoo_names())
def test_every_policy_of_the_zoo_plays_about_as_well_as_it_says(name: str) -> None:
    """A few episodes with a seed of their own: enough to tell it from a network of noise."""
    policy, said = load_policy(f"zoo:{name}"), zoo_entry(name)["evaluation"]
    protocol = EvalProtocol(policy.config.env.levels, 8, seed=77, **SETTINGS[said["protocol"]["name"]])
    report = evaluate(policy.network, policy.config.env, protocol)
    assert report.clear_rate >= said["clear_rate"] - 0.5
    assert report.x_pos["mean"] >= 0.6 * said["x_pos"]["mean"]
