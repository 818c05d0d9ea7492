"""Stable-Baselines3's PPO, as its users run it: CnnPolicy behind SubprocVecEnv.

SB3's defaults but for the threads, see ``fastest_threads``. Run as
``python -m mario_dist.bench.peers.sb3 '<PeerSettings as JSON>'``.
"""

import multiprocessing
import time
from dataclasses import asdict, dataclass
from functools import partial

import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from mario_dist.bench.peers.gym_stack import make_env
from mario_dist.bench.peers.process import child_main
from mario_dist.bench.peers.settings import Iteration, PeerResult, PeerSettings, summarise


@dataclass(frozen=True, slots=True)
class Threads:
    """PyTorch's CPU threads while acting and while learning."""

    rollout: int
    learn: int


def fastest_threads(n_envs: int) -> Threads:
    """While acting, only the cores that the emulators leave free: PyTorch's threads spin for a while
    after each forward pass, on cores that the emulators need by then. On 2 idle cores an iteration went
    from 155 to 183 agent steps/s by it, on busy ones from 35 to 60. While learning, all of them."""
    cores = torch.get_num_threads()
    return Threads(rollout=max(1, cores - n_envs), learn=cores)


class Clock(BaseCallback):
    """Notes when each rollout starts and ends; the update is what lies between two rollouts."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self.started: list[float] = []
        self.ended: list[float] = []
        self._threads = threads

    def _on_rollout_start(self) -> None:
        self.started.append(time.perf_counter())
        torch.set_num_threads(self._threads.rollout)

    def _on_rollout_end(self) -> None:
        torch.set_num_threads(self._threads.learn)
        self.ended.append(time.perf_counter())

    def _on_training_end(self) -> None:
        self.started.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True

    def iterations(self, agent_steps: int) -> list[Iteration]:
        """Every iteration so far, each of ``agent_steps``."""
        return [
            Iteration(agent_steps, rollout_s=end - start, learn_s=following - end)
            for start, end, following in zip(self.started, self.ended, self.started[1:], strict=False)
        ]


def measure(settings: PeerSettings) -> PeerResult:
    """Train and time. Start-up and the warm-up iterations are not in the figures."""
    wanted = settings.torch_threads
    threads = Threads(wanted, wanted) if wanted else fastest_threads(settings.n_envs)
    return train(
        settings, subprocesses(settings.level, settings.n_envs), f"SubprocVecEnv x {settings.n_envs}", threads
    )


def subprocesses(level: str, n_envs: int) -> SubprocVecEnv:
    """The peers' environment stack, an emulator in each process."""
    # Eight interpreters that each import PyTorch take half a minute; forks of one that has it, a second.
    multiprocessing.set_forkserver_preload(["stable_baselines3", make_env.__module__])
    return SubprocVecEnv([partial(make_env, level) for _ in range(n_envs)])


def train(settings: PeerSettings, envs: VecEnv, described: str, threads: Threads) -> PeerResult:
    """SB3's own training loop on ``envs``, which are closed in the end."""
    clock = Clock(threads)
    try:
        model = _model(settings, envs)
        total = settings.turn * (settings.warmup_iterations + settings.iterations)
        model.learn(total, callback=clock, log_interval=None)  # type: ignore[arg-type]  # None is allowed: no log
    finally:
        envs.close()
    detail = {
        "version": stable_baselines3.__version__,
        "envs": described,
        "torch_threads": asdict(threads),
        "device": str(model.device),
    }
    return summarise(clock.iterations(settings.turn)[settings.warmup_iterations :], detail)


def _model(settings: PeerSettings, envs: VecEnv) -> PPO:
    # CnnPolicy is NatureCNN with 512 features, shared by policy and value, and orthogonal initialisation.
    return PPO(
        "CnnPolicy",
        envs,
        learning_rate=settings.lr,
        n_steps=settings.n_steps,
        batch_size=settings.minibatch,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip,
        ent_coef=settings.entropy_coef,
        vf_coef=settings.value_coef,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        device=settings.device,
    )


if __name__ == "__main__":
    child_main(measure, PeerSettings)
