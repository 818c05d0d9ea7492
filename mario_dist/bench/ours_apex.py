"""Ape-X on the peers' Q-learning workload, with all that a run does.

Run as ``python -m mario_dist.bench.ours_apex '<DQNSettings as JSON>'``.
"""

from mario_dist.algos.apex import ApexConfig
from mario_dist.bench.ours import train
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.settings import DQNSettings, PeerResult, env_config, network_config
from mario_dist.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearnerConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    SystemConfig,
)


def run_config(settings: DQNSettings) -> RunConfig:
    """The workload as a run's configuration; all updates of a turn are one iteration."""
    return RunConfig(
        name="bench",
        seed=settings.seed,
        total_steps=settings.warmup + settings.iterations * settings.turn,
        env=env_config(settings),
        network=network_config(settings),
        algo=ApexConfig(
            gamma=settings.gamma,
            n_step=settings.n_step,
            batch=settings.batch,
            lr=(settings.lr, settings.lr),
            target_every=settings.target_every,
            publish_every=settings.updates,
        ),
        replay=ReplayConfig(
            capacity=settings.capacity,
            min_size=settings.warmup // 2,
            samples_per_insert=settings.replay_ratio,
        ),
        rollout=RolloutConfig(actors=1, lanes=settings.n_envs, unroll_length=settings.n_steps),
        # One process, whatever the machine: the peers have this many emulators too.
        system=SystemConfig(driver="local"),
        learner=LearnerConfig(device=settings.device, threads=settings.torch_threads, precision="float32"),
        checkpoint=CheckpointConfig(every_steps=10**9),
        evaluation=EvaluationConfig(every_steps=0),
    )


def measure(settings: DQNSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up are not in the figures."""
    return train(run_config(settings), settings.iterations, settings.updates)


if __name__ == "__main__":
    child_main(measure, DQNSettings)
