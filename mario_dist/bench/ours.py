"""This project on the peers' workload, with all that a run does: store, MLflow, episodes, live view.

Run as ``python -m mario_dist.bench.ours '<PeerSettings as JSON>'``.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from mario_dist.algos.ppo import PPOConfig
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.settings import (
    Iteration,
    PeerResult,
    PeerSettings,
    env_config,
    network_config,
    summarise,
)
from mario_dist.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearnerConfig,
    RolloutConfig,
    RunConfig,
    SystemConfig,
)
from mario_dist.store import RunRow, RunStore
from mario_dist.system.run import run_training


def run_config(settings: PeerSettings) -> RunConfig:
    """The peers' workload as a run's configuration."""
    iterations = settings.warmup_iterations + settings.iterations
    return RunConfig(
        name="bench",
        seed=settings.seed,
        total_steps=iterations * settings.turn,
        env=env_config(settings),
        network=network_config(settings),
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
        learner=LearnerConfig(device=settings.device, threads=settings.torch_threads, precision="float32"),
        checkpoint=CheckpointConfig(every_steps=10**9),
        evaluation=EvaluationConfig(every_steps=0),
    )


def measure(settings: PeerSettings) -> PeerResult:
    """Train for warmup + measured iterations in a directory that is thrown away."""
    return train(run_config(settings), settings.iterations)


def train(config: RunConfig, iterations: int, updates: int = 0) -> PeerResult:
    """Train as ``config`` says and give the medians of the last ``iterations``.

    An iteration's seconds are the differences between the wall-clock times that the run store keeps, so
    everything between two learner steps counts; what is not collecting counts as learning. updates: in each
    iteration, where they count.
    """
    with trained(config) as (store, run):
        rows = store.metrics(run.id, ["collect_s"])
        parts = {
            name: median(row["value"] for row in store.metrics(run.id, [f"{name}_s"])[-iterations:])
            for name in ("worker_environment", "worker_inference", "learn")
        }
    # The first iteration has no predecessor in the store; there is at least one warm-up to give up.
    measured = [
        Iteration(
            agent_steps=now["agent_steps"] - before["agent_steps"],
            rollout_s=now["value"],
            learn_s=now["wall_s"] - before["wall_s"] - now["value"],
        )
        for before, now in pairwise(rows)
    ]
    return summarise(
        measured[-iterations:], {"plan": run.machine["plan"], "seconds_of_parts": parts}, updates
    )


@contextmanager
def trained(
    config: RunConfig, enough: Callable[[RunStore], bool] | None = None
) -> Iterator[tuple[RunStore, RunRow]]:
    """Train as ``config`` says, in a directory that is thrown away: the store and the run in it.

    enough: asked once a second; as soon as it says so the run is stopped, as a user stops it.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/mario.db"
        with RunStore(url) as store:
            with _stopped_when(partial(enough, store)) if enough is not None else nullcontext():
                result = run_training(
                    config, Path(folder), store_url=url, tracking_uri=f"sqlite:///{folder}/mlflow.db"
                )
            yield store, store.get_run(result.run_id)


@contextmanager
def _stopped_when(enough: Callable[[], bool]) -> Iterator[None]:
    """Within the block, this process is sent a SIGTERM once ``enough`` says so."""
    ended = threading.Event()
    failed: list[Exception] = []

    def watch() -> None:
        while not ended.wait(1.0):
            try:
                stop = enough()
            except Exception as error:  # told below: nobody hears it here, and the run would have no end
                failed.append(error)
                stop = True
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    child_main(measure, PeerSettings)
