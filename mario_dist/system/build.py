"""From configuration to workers and learners; the same for every driver."""

import numpy as np

from mario_dist.algos.ppo import PPO
from mario_dist.config import RunConfig
from mario_dist.env import make_env
from mario_dist.env.actions import action_names
from mario_dist.errors import UserError
from mario_dist.evaluation import EvalProtocol
from mario_dist.learner import Learner
from mario_dist.nets import ActorCritic, build_network
from mario_dist.rollout import RolloutWorker
from mario_dist.types import EnvSpec


def env_spec(config: RunConfig) -> EnvSpec:
    """What the policy must know of the run's environment, without starting one."""
    env = config.env
    return EnvSpec(env.frame_size, env.frame_stack, action_names(env.actions), env.frame_skip)


def make_network(config: RunConfig) -> ActorCritic:
    """The run's network with its seed's initial weights. Raises ``UserError`` where the frames don't fit."""
    try:
        return build_network(config.network, env_spec(config), config.seed)
    except ValueError as error:
        raise UserError(f"network: {error}") from error


def make_learner(config: RunConfig, threads: int) -> Learner:
    """Raises ``UserError`` where the device is not there."""
    try:
        return Learner(
            make_network(config),
            PPO(config.algo),
            frame_stack=config.env.frame_stack,
            lr=config.algo.lr,
            adam_eps=config.algo.adam_eps,
            max_grad_norm=config.algo.max_grad_norm,
            seed=config.seed,
            device=config.learner.device,
            precision=config.learner.precision,
            compiled=config.learner.compile,
            threads=threads,
        )
    except ValueError as error:
        raise UserError(f"learner: {error}") from error


def make_worker(
    config: RunConfig, *, lanes: int, threads: int, actor: int = 0, incarnation: int = 0
) -> RolloutWorker:
    """A rollout worker; (run seed, actor, incarnation) names its random streams."""
    return RolloutWorker(
        make_env(config.env, lanes, (config.seed, actor, incarnation), threads),
        make_network(config),
        length=config.rollout.unroll_length,
        seed=int(np.random.SeedSequence([config.seed, actor, incarnation]).generate_state(1)[0]),
        actor=actor,
        incarnation=incarnation,
    )


def training_protocol(config: RunConfig) -> EvalProtocol:
    """The protocol that judges checkpoints while a run trains."""
    evaluation = config.evaluation
    return EvalProtocol(
        levels=config.env.levels,
        episodes=evaluation.episodes,
        noop_max=evaluation.noop_max,
        seed=evaluation.seed,
        greedy=evaluation.greedy,
    )
