"""This project on the peers' workload, with all that a run does: store, MLflow, episodes, live view.

Run as ``python -m mario_dist.bench.ours '<PeerSettings as JSON>'``.
"""

import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from mario_dist.algos.ppo import PPOConfig
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.settings import Iteration, PeerResult, PeerSettings, summarise
from mario_dist.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearnerConfig,
    RolloutConfig,
    RunConfig,
    SystemConfig,
)
from mario_dist.env import EnvConfig
from mario_dist.nets import NetworkConfig
from mario_dist.store import RunStore
from mario_dist.system.run import run_training


def run_config(settings: PeerSettings) -> RunConfig:
    """The peers' workload as a run's configuration."""
    iterations = settings.warmup_iterations + settings.iterations
    return RunConfig(
        name="bench",
        seed=settings.seed,
        total_steps=iterations * settings.batch,
        # The peers' episodes end with the life or the level alone.
        env=EnvConfig(
            levels=(settings.level,),
            reward="native",
            noop_max=0,
            stall_steps=0,
            max_steps=0,
            emulator=settings.emulator,
        ),
        network=NetworkConfig(torso=settings.torso, hidden=512 if settings.torso == "nature" else 256),
        algo=PPOConfig(
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            clip=settings.clip,
            value_coef=settings.value_coef,
            entropy_coef=(settings.entropy_coef, settings.entropy_coef),
            lr=(settings.lr, settings.lr),
            max_grad_norm=settings.max_grad_norm,
            epochs=settings.epochs,
            minibatch=settings.minibatch,
        ),
        rollout=RolloutConfig(actors=1, lanes=settings.n_envs, unroll_length=settings.n_steps),
        # One process, whatever the machine: the peers have this many emulators too.
        system=SystemConfig(driver="local"),
        learner=LearnerConfig(device=settings.device, threads=settings.torch_threads),
        checkpoint=CheckpointConfig(every_steps=10**9),
        evaluation=EvaluationConfig(every_steps=0),
    )


def measure(settings: PeerSettings) -> PeerResult:
    """Train for warmup + measured iterations in a directory that is thrown away.

    An iteration's seconds are the differences between the wall-clock times that the run store keeps, so
    everything between two learner steps counts; what is not collecting counts as learning.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/mario.db"
        result = run_training(
            run_config(settings), Path(folder), store_url=url, tracking_uri=f"sqlite:///{folder}/mlflow.db"
        )
        with RunStore(url) as store:
            rows = store.metrics(result.run_id, ["collect_s"])
            parts = {
                name: median(row["value"] for row in store.metrics(result.run_id, [f"{name}_s"])[1:])
                for name in ("worker_environment", "worker_inference", "learn")
            }
            plan = store.get_run(result.run_id).machine["plan"]
    # The first iteration has no predecessor in the store; there is at least one warm-up to give up.
    iterations = [
        Iteration(
            agent_steps=now["agent_steps"] - before["agent_steps"],
            rollout_s=now["value"],
            learn_s=now["wall_s"] - before["wall_s"] - now["value"],
        )
        for before, now in pairwise(rows)
    ]
    return summarise(iterations[-settings.iterations :], {"plan": plan, "seconds_of_parts": parts})


if __name__ == "__main__":
    child_main(measure)
