"""PPO learns: a small environment past a threshold, through the whole system."""

from collections.abc import Callable
from pathlib import Path

from mario_dist.config import RunConfig
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
    url = f"sqlite:///{tmp_path}/mario.db"
    result = run_training(config, tmp_path, store_url=url, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with RunStore(url) as store:
        first = [e["episode_return"] for e in store.episodes(result.run_id)[:100]]
    assert sum(first) / len(first) < 5, "a random policy must not solve it"
    assert result.best is not None
    clear_rate, _ = result.best
    assert clear_rate >= 0.9
