"""Stable-Baselines3's DQN behind SubprocVecEnv: uniform replay, neither double nor dueling, n-step returns.

That is less work for each sample than Ape-X's: SB3 asks no online network about the next state and keeps no
priorities. Run as ``python -m mario_dist.bench.peers.sb3_dqn '<DQNSettings as JSON>'``.
"""

from dataclasses import asdict

import stable_baselines3
from stable_baselines3 import DQN

from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.sb3 import Clock, Threads, fastest_threads, subprocesses
from mario_dist.bench.peers.settings import DQNSettings, PeerResult, summarise


def measure(settings: DQNSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up are not in the figures."""
    wanted = settings.torch_threads
    threads = Threads(wanted, wanted) if wanted else fastest_threads(settings.n_envs)
    envs = subprocesses(settings.level, settings.n_envs)
    clock = Clock(threads)
    try:
        model = DQN(
            "CnnPolicy",
            envs,
            learning_rate=settings.lr,
            buffer_size=settings.capacity,
            learning_starts=settings.warmup // 2,
            batch_size=settings.batch,
            gamma=settings.gamma,
            n_steps=settings.n_step,
            train_freq=(settings.n_steps, "step"),
            gradient_steps=settings.updates,
            # In agent steps, for everybody else in updates.
            target_update_interval=round(settings.target_every * settings.batch / settings.replay_ratio),
            seed=settings.seed,
            device=settings.device,
        )
        turns = settings.warmup // settings.turn + settings.iterations
        model.learn(turns * settings.turn, callback=clock, log_interval=10**9)
    finally:
        envs.close()
    detail = {
        "version": stable_baselines3.__version__,
        "envs": f"SubprocVecEnv x {settings.n_envs}",
        "torch_threads": asdict(threads),
        "device": str(model.device),
    }
    return summarise(clock.iterations(settings.turn)[-settings.iterations :], detail, settings.updates)


if __name__ == "__main__":
    child_main(measure, DQNSettings)
