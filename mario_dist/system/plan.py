"""How many actors, lanes and threads: from the configuration and the machine, never oversubscribed."""

from dataclasses import dataclass
from typing import Literal

from mario_dist.algos.apex import ApexConfig
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.replay import planned_bytes

_LANES = 32
_MIN_LANES_PER_ACTOR = 8
# Up to here one process with threads keeps all cores busy (the emulator releases the GIL) and is simplest.
_LOCAL_CORES = 4
_CORES_PER_REPLAYED_ACTOR = 4
_CORES_PER_QUEUED_ACTOR = 2
_ACTORS_PER_SHARD = 8
_MOST_ACTORS = 10_000
_MEMORY_SHARE = 0.8
"""Of the memory that is free, what a replay may take: the rest is for emulators, networks and batches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who runs where. Threads are per process.

    actor_torch_threads: of each rollout actor's inference: only cores that emulation leaves free, since
    PyTorch's threads spin for a while after each forward pass, on cores that the emulators need by then.
    in_turn: whether actors and learner take turns on the same cores.
    shards: of the replay; 0 where the algorithm has none.
    inference_cores: of a shared inference actor on the CPU.
    elastic: whether rollout actors come and go with a cluster's nodes; ``actors`` is what it begins with.
    learner_node: whether learner, replay and evaluations belong on the nodes with the resource ``learner``.
    """

    driver: Literal["local", "ray"]
    actors: int
    lanes: int
    env_threads: int
    actor_torch_threads: int
    learner_threads: int
    in_turn: bool
    shards: int
    inference_cores: int = 0
    elastic: bool = False
    learner_node: bool = False


@dataclass(frozen=True, slots=True)
class Cores:
    """Those of a machine or a cluster: all that are free, the most that one node has, and the learner's node.

    learner_node: whether the cluster names that node.
    """

    free: int
    largest: int
    learner: int
    learner_node: bool = False


def make_plan(config: RunConfig, cores: int | Cores, *, gpu: bool, address: str | None = None) -> Plan:
    """Fill in what the configuration leaves to the machine or cluster with these cores.

    address: what --address said; with one, ``driver: auto`` means Ray. Raises ``UserError`` for a policy
    lag that the driver cannot have.
    """
    cores = Cores(cores, cores, cores) if isinstance(cores, int) else cores
    rollout, system = config.rollout, config.system
    driver, asked_lag, shared = system.driver, system.max_policy_lag or 0, rollout.inference == "shared"
    if driver == "auto":
        wanted = address is not None or cores.free > _LOCAL_CORES or asked_lag or shared
        driver = "ray" if wanted else "local"
    if driver == "local" and asked_lag:
        raise UserError(
            f"system.max_policy_lag={asked_lag} needs actors beside the learner: system.driver=ray"
        )
    if driver == "local" and shared:
        raise UserError("rollout.inference=shared serves actors in processes of their own: system.driver=ray")
    plan = _local_plan(config, cores.free) if driver == "local" else _ray_plan(config, cores, gpu=gpu)
    if plan.lanes < rollout.groups:
        raise UserError(f"rollout.groups={rollout.groups} of {plan.lanes} lane(s): there are fewer lanes")
    return plan


def _local_plan(config: RunConfig, cores: int) -> Plan:
    rollout = config.rollout
    actors = rollout.actors or 1
    lanes = rollout.lanes or max(1, _LANES // actors)
    env_threads = rollout.threads or min(cores, lanes)
    torch_threads = max(1, cores - env_threads)
    return Plan(
        driver="local",
        actors=actors,
        lanes=lanes,
        env_threads=env_threads,
        actor_torch_threads=torch_threads,
        learner_threads=config.learner.threads or cores,
        in_turn=True,
        shards=(config.replay.shards or 1) if config.algo.replayed else 0,
    )


def _ray_plan(config: RunConfig, there: Cores, *, gpu: bool) -> Plan:
    rollout, learner, replayed = config.rollout, config.learner, config.algo.replayed
    inference_cores = 1 if rollout.inference == "shared" and not gpu else 0
    cores = max(1, there.free - inference_cores)
    # In turn, actors and a learner on the CPU share all cores; side by side, they divide them.
    in_turn = config.max_policy_lag == 0 and not replayed
    if in_turn and not gpu:
        default_actors = cores
    elif there.learner_node and not gpu:
        default_actors = max(1, cores - there.learner)
    elif gpu or config.max_policy_lag == 1:
        default_actors = max(1, cores - 1)
    else:
        # On the CPU, learning from a step takes several times what making it takes. It stays on one node.
        share = _CORES_PER_REPLAYED_ACTOR if replayed else _CORES_PER_QUEUED_ACTOR
        default_actors = max(1, cores // share, cores - there.learner)
    actors = rollout.actors or default_actors
    lanes = rollout.lanes or max(_MIN_LANES_PER_ACTOR, _LANES // actors)
    env_threads = rollout.threads or (min(there.largest, max(1, cores // actors)) if in_turn else 1)
    if in_turn:
        beside = cores
    elif there.learner_node and not gpu:
        # The node is the learner's, but for the core of one actor where there is no other.
        beside = max(1, min(there.learner, cores - 1))
    else:
        beside = max(1, cores - actors * env_threads)
    return Plan(
        driver="ray",
        actors=actors,
        lanes=lanes,
        env_threads=env_threads,
        actor_torch_threads=1,
        learner_threads=learner.threads or min(there.learner, beside),
        in_turn=in_turn,
        shards=(config.replay.shards or -(-actors // _ACTORS_PER_SHARD)) if replayed else 0,
        inference_cores=inference_cores,
        learner_node=there.learner_node,
    )


def reserved_cores(plan: Plan) -> int:
    """The cores that a Ray plan reserves. In turn with its actors, a learner uses theirs.

    Shards reserve none: they copy memory now and then.
    """
    learner = 0 if plan.in_turn else plan.learner_threads
    return plan.actors * plan.env_threads + learner + plan.inference_cores


def most_actors(config: RunConfig, plan: Plan) -> int:
    """The most rollout actors that an elastic plan may come to have."""
    if config.rollout.actors:
        return config.rollout.actors
    if not plan.shards:
        return _MOST_ACTORS
    # As ``check_replay`` would have it.
    replay, unroll = config.replay, plan.lanes * config.rollout.unroll_length
    linked = plan.shards * (replay.capacity // (2 * unroll * plan.shards))
    return min(linked, (replay.capacity - replay.min_size) // unroll)


def shard_bytes(config: RunConfig, plan: Plan) -> int:
    """The memory that each shard of the replay may come to take."""
    capacity = config.replay.capacity // plan.shards
    # A true final frame for each truncated episode, and none can be shorter than the step limit.
    finals = config.env.frame_size[0] * config.env.frame_size[1] // max(1, config.env.max_steps or capacity)
    return capacity * (planned_bytes(config.replay.compression, config.env.frame_size) + finals)


def check_replay(config: RunConfig, plan: Plan, free_bytes: float) -> None:
    """Raises ``UserError`` where the replay cannot hold the run's unrolls or does not fit the memory."""
    if not plan.shards:
        return
    replay, unroll = config.replay, plan.lanes * config.rollout.unroll_length
    assert isinstance(config.algo, ApexConfig)
    shortest = max(config.algo.n_step, config.env.frame_stack)
    if config.rollout.unroll_length < shortest:
        raise UserError(
            f"rollout.unroll_length={config.rollout.unroll_length} is shorter than algo.n_step or"
            f" env.frame_stack; make it at least {shortest}"
        )
    if plan.shards > plan.actors:
        raise UserError(
            f"replay.shards={plan.shards} for {plan.actors} actor(s): an actor's unrolls go to one shard, so"
            f" some would stay empty; set replay.shards={plan.actors} or less"
        )
    # An unroll is linked to its actor's one before, which must not have been overwritten by then.
    least = 2 * unroll * plan.shards * -(-plan.actors // plan.shards)
    if replay.capacity < least:
        raise UserError(
            f"replay.capacity={replay.capacity:,} is too small: each of {plan.shards} shard(s) must hold two"
            f" unrolls of {unroll:,} steps of each of its actors; make it at least {least:,}"
        )
    if replay.min_size > replay.capacity - plan.actors * unroll:
        raise UserError(
            f"replay.min_size={replay.min_size:,} leaves no room for an unroll of each actor in"
            f" replay.capacity={replay.capacity:,}; lower it or raise the capacity"
        )
    need, free = plan.shards * shard_bytes(config, plan), _MEMORY_SHARE * free_bytes
    if need > free:
        fits = int(replay.capacity * free / need) // 1_000 * 1_000
        raise UserError(
            f"a replay of {replay.capacity:,} transitions takes {need / 2**30:.1f} GiB, and"
            f" {free / 2**30:.1f} GiB are to spare; set replay.capacity={fits}"
            + ("" if replay.compression == "lz4" else " or replay.compression=lz4")
        )
