"""From configuration to workers, replay shards and learners; the same for every driver."""

from typing import Any

import numpy as np
import torch

from mario_dist import machine
from mario_dist.algos.apex import ApexConfig, ApexDQN
from mario_dist.algos.api import Algorithm
from mario_dist.algos.impala import Impala, ImpalaConfig
from mario_dist.algos.ppo import PPO, PPOConfig
from mario_dist.config import RunConfig
from mario_dist.env import make_env
from mario_dist.env.actions import action_names
from mario_dist.errors import UserError
from mario_dist.evaluation import SETTINGS, EvalProtocol
from mario_dist.learner import Learner, OptimiserConfig, ReplayLearner
from mario_dist.nets import ActorCritic, Network, QNetwork, build_network
from mario_dist.ops.exploration import epsilon_ladder
from mario_dist.replay import PrioritisedReplay
from mario_dist.rollout import EpsilonGreedy, Inference, InitialPriorities, RolloutWorker
from mario_dist.types import EnvSpec


def env_spec(config: RunConfig) -> EnvSpec:
    """What the policy must know of the run's environment, without starting one."""
    env = config.env
    return EnvSpec(env.frame_size, env.frame_stack, action_names(env.actions), env.frame_skip)


def make_network(config: RunConfig) -> Network:
    """The run's network with its seed's initial weights. Raises ``UserError`` where the frames don't fit."""
    head = config.algo.head if isinstance(config.algo, ApexConfig) else "policy"
    try:
        return build_network(config.network, env_spec(config), config.seed, head)
    except ValueError as error:
        raise UserError(f"network: {error}") from error


def make_learner(config: RunConfig, threads: int) -> Learner:
    """A learner that takes each unroll once. Raises ``UserError`` where the device is not there."""
    machine.keep_freed_memory()
    algo, network = config.algo, make_network(config)
    assert isinstance(algo, PPOConfig | ImpalaConfig)
    assert isinstance(network, ActorCritic)
    algorithm: Algorithm[Any]
    reuse, reuse_buffer = 1, 1
    if isinstance(algo, PPOConfig):
        algorithm, optimiser = PPO(algo), OptimiserConfig(algo.lr, algo.adam_eps, algo.max_grad_norm)
    else:
        algorithm, reuse, reuse_buffer = Impala(algo), algo.reuse, algo.reuse_buffer
        optimiser = OptimiserConfig(algo.lr, algo.optimiser_eps, algo.max_grad_norm, algo.optimiser)
    try:
        return Learner(
            network,
            algorithm,
            frame_stack=config.env.frame_stack,
            optimiser=optimiser,
            reuse=reuse,
            reuse_buffer=reuse_buffer,
            seed=config.seed,
            device=config.learner.device,
            precision=config.learner.precision,
            compiled=config.learner.compile,
            threads=threads,
        )
    except ValueError as error:
        raise UserError(f"learner: {error}") from error


def make_replay_learner(config: RunConfig, threads: int) -> ReplayLearner:
    """A learner from a replay. Raises ``UserError`` where the device is not there."""
    assert isinstance(config.algo, ApexConfig)
    machine.keep_freed_memory()
    network = make_network(config)
    assert isinstance(network, QNetwork)
    try:
        return ReplayLearner(
            network,
            ApexDQN(config.algo),
            frame_stack=config.env.frame_stack,
            device=config.learner.device,
            precision=config.learner.precision,
            compiled=config.learner.compile,
            threads=threads,
        )
    except ValueError as error:
        raise UserError(f"learner: {error}") from error


def make_shard(config: RunConfig, *, lanes: int, shard: int, shards: int) -> PrioritisedReplay:
    """One shard of the run's replay. Raises ``UserError`` where it is too small for the run's unrolls."""
    algo, replay = config.algo, config.replay
    assert isinstance(algo, ApexConfig)
    try:
        return PrioritisedReplay(
            capacity=replay.capacity // shards,
            unroll_length=config.rollout.unroll_length,
            lanes=lanes,
            frame_shape=config.env.frame_size,
            frame_stack=config.env.frame_stack,
            n_step=algo.n_step,
            gamma=algo.gamma,
            priority_exponent=algo.priority_exponent,
            seed=_seed(config, shard, _SHARD_STREAM),
            compression=replay.compression,
        )
    except ValueError as error:
        raise UserError(f"replay: {error}") from error


def make_worker(
    config: RunConfig,
    *,
    lanes: int,
    threads: int,
    actor: int = 0,
    actors: int = 1,
    incarnation: int = 0,
    inference: Inference | None = None,
) -> RolloutWorker:
    """Rollout worker ``actor`` of ``actors``; (run seed, actor, incarnation) names its random streams.

    inference: what computes its policy, by default a network of its own.
    """
    algo = config.algo
    policy, priorities = None, None
    if isinstance(algo, ApexConfig):
        # Those that joined an elastic run later stand on the same ladder.
        policy = _epsilon_greedy(algo, first=actor % actors * lanes, lanes=lanes, count=actors * lanes)
        priorities = InitialPriorities(algo.n_step, algo.gamma) if algo.priority_exponent else None
    sizes = [len(part) for part in np.array_split(np.arange(lanes), config.rollout.groups)]
    names = [(config.seed, actor, incarnation, *([group] if group else [])) for group in range(len(sizes))]
    return RolloutWorker(
        [make_env(config.env, n, name, threads) for n, name in zip(sizes, names, strict=True)],
        make_network(config) if inference is None else inference,
        length=config.rollout.unroll_length,
        seed=_seed(config, actor, incarnation),
        actor=actor,
        incarnation=incarnation,
        policy=policy,
        priorities=priorities,
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


def stop_protocol(config: RunConfig) -> EvalProtocol:
    """The protocol that says whether a run has reached what it is to end with."""
    stop = config.stop
    return EvalProtocol(config.env.levels, stop.episodes, seed=stop.seed, **SETTINGS[stop.protocol])


_SHARD_STREAM = 2**32 - 1
"""Where a worker's streams have their incarnation."""


def _seed(config: RunConfig, *words: int) -> int:
    return int(np.random.SeedSequence([config.seed, *words]).generate_state(1)[0])


def _epsilon_greedy(algo: ApexConfig, *, first: int, lanes: int, count: int) -> EpsilonGreedy:
    """The lanes ``first`` and following of ``count``, each with its epsilon."""
    if algo.epsilon_ladder is not None:
        base, alpha = algo.epsilon_ladder
        epsilon_N = torch.tensor([epsilon_ladder(base, alpha, first + i, count) for i in range(lanes)])
        return EpsilonGreedy(epsilon_N, epsilon_N, share=1.0)
    start, end = algo.epsilon
    return EpsilonGreedy(torch.full((lanes,), start), torch.full((lanes,), end), algo.epsilon_share)
