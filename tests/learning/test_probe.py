"""Every algorithm learns: a small environment past a threshold, through the whole system."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mario_dist.config import RunConfig
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore
from mario_dist.system.run import run_training


def test_ppo_solves_the_probe_within_a_minute(tmp_path: Path, probe_config: Callable[..., RunConfig]) -> None:
    config = probe_config(
        total_steps=40_960,
        env={"max_steps": 100},
        algo={"epochs": 4, "minibatch": 256, "lr": [2e-3, 5e-4], "gamma": 0.95, "gae_lambda": 0.95},
        network={"torso": "mlp", "hidden": 64},
        rollout={"lanes": 16, "unroll_length": 64},
        checkpoint={"every_steps": 40_960},
        evaluation={"every_steps": 40_960, "episodes": 50},
    )
    assert_solved(config, tmp_path)


def test_apex_solves_the_probe_within_a_minute(tmp_path: Path, apex_config: Callable[..., RunConfig]) -> None:
    config = apex_config(
        total_steps=16_384,
        env={"max_steps": 100},
        algo={"batch": 64, "lr": [1e-3, 5e-4], "gamma": 0.95, "target_every": 100},
        network={"torso": "mlp", "hidden": 64},
        replay={"capacity": 16_384, "min_size": 1_024, "samples_per_insert": 8.0},
        rollout={"lanes": 8, "unroll_length": 16},
        checkpoint={"every_steps": 16_384},
        evaluation={"every_steps": 16_384, "episodes": 50},
    )
    assert_solved(config, tmp_path)


@pytest.mark.parametrize("clip", [None, 0.2], ids=["impala", "appo"])
def test_impala_solves_the_probe_within_a_minute(
    tmp_path: Path, impala_config: Callable[..., RunConfig], clip: float | None
) -> None:
    config = impala_config(
        total_steps=81_920,
        env={"max_steps": 100},
        algo={
            "lr": [2e-3, 5e-4],
            "gamma": 0.95,
            "minibatch": 256,
            "normalise_advantages": True,
            "clip": clip,
        },
        network={"torso": "mlp", "hidden": 64},
        rollout={"lanes": 16, "unroll_length": 32},
        checkpoint={"every_steps": 81_920},
        evaluation={"every_steps": 81_920, "episodes": 50},
    )
    assert_solved(config, tmp_path)


def assert_solved(config: RunConfig, tmp_path: Path) -> None:
    """The last evaluation clears nine episodes in ten; the first episodes were as good as random."""
    url = f"sqlite:///{tmp_path}/mario.db"
    result = run_training(config, tmp_path, store_url=url, tracking_uri=default_tracking_uri())
    with RunStore(url) as store:
        first = [e["episode_return"] for e in store.episodes(result.run_id)[:100]]
    assert sum(first) / len(first) < 5, "a random policy must not solve it"
    assert result.best is not None
    clear_rate, _ = result.best
    assert clear_rate >= 0.9
