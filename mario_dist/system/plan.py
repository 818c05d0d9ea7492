"""How many actors, lanes and threads: from the configuration and the machine, never oversubscribed."""

from dataclasses import dataclass
from typing import Literal

from mario_dist.config import RunConfig
from mario_dist.errors import UserError

_LANES = 16
_MIN_LANES_PER_ACTOR = 8
# Up to here one process with threads keeps all cores busy (the emulator releases the GIL) and is simplest.
_LOCAL_CORES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Who runs where. Threads are per process.

    actor_torch_threads: of each rollout actor's inference: only cores that emulation leaves free, since
    PyTorch's threads spin for a while after each forward pass, on cores that the emulators need by then.
    """

    driver: Literal["local", "ray"]
    actors: int
    lanes: int
    env_threads: int
    actor_torch_threads: int
    learner_threads: int


def make_plan(config: RunConfig, cores: int, *, gpu: bool, address: str | None = None) -> Plan:
    """Fill in what the configuration leaves to the machine, which has ``cores`` cores.

    address: what --address said; with one, ``driver: auto`` means Ray. Raises ``UserError`` for a policy
    lag that the driver cannot have.
    """
    rollout, learner, system = config.rollout, config.learner, config.system
    driver = system.driver
    if driver == "auto":
        overlapping = system.max_policy_lag > 0
        driver = "ray" if address is not None or cores > _LOCAL_CORES or overlapping else "local"
    if driver == "local" and system.max_policy_lag > 0:
        raise UserError("system.max_policy_lag=1 needs actors beside the learner: system.driver=ray")
    if driver == "local":
        actors = rollout.actors or 1
        lanes = rollout.lanes or max(1, _LANES // actors)
        env_threads = rollout.threads or min(cores, lanes)
        torch_threads = max(1, cores - env_threads)
        return Plan("local", actors, lanes, env_threads, torch_threads, learner.threads or cores)
    # In turn, actors and a learner on the CPU share all cores; side by side, they divide them.
    in_turn = system.max_policy_lag == 0
    actors = rollout.actors or (cores if in_turn and not gpu else max(1, cores - 1))
    lanes = rollout.lanes or max(_MIN_LANES_PER_ACTOR, _LANES // actors)
    env_threads = rollout.threads or (max(1, cores // actors) if in_turn else 1)
    learner_threads = learner.threads or (cores if in_turn else max(1, cores - actors * env_threads))
    return Plan("ray", actors, lanes, env_threads, 1, learner_threads)


def reserved_cores(plan: Plan, config: RunConfig) -> int:
    """The cores that a Ray plan reserves. In turn with its actors, a learner uses theirs."""
    learner = 0 if config.system.max_policy_lag == 0 else plan.learner_threads
    return plan.actors * plan.env_threads + learner
