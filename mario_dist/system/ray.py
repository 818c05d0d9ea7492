"""The topology on Ray: rollout actors, a learner actor, and this process conducting.

Unrolls and weights travel as references: from rollout actor to learner and back, never through here.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

# Ray would run every worker through `uv run` on a copy of the working directory when it sees uv as the
# parent; the workers of this machine use this very environment, others bring their own.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray's default for actors without GPUs changes in a coming version and warns of it; this is the new one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.evaluation import EvalProtocol, evaluate
from mario_dist.learner import StagedBatch
from mario_dist.nets import set_weights
from mario_dist.rollout import Inference, SharedInference
from mario_dist.system.build import make_learner, make_network, make_worker
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected, Order
from mario_dist.system.ray_inference import RayServer, inference_actor
from mario_dist.types import Arrays, EpisodeRecord, EvalReport, StepReport, Unroll, Weights

Ref = Any
"""A ``ray.ObjectRef``; Ray's actor handles are untyped, so its references are too."""

_POLL_S = 0.5
_ORDERS = 2
"""Orders that a learner may have at once: it never waits for this process between two."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What the conductor is told of an unroll; small, so that it may come here."""

    steps: int
    weights_version: int
    episodes: tuple[EpisodeRecord, ...]
    seconds: Mapping[str, float]


class RolloutActor:
    """A thin shell around ``RolloutWorker``."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        actor: int,
        incarnation: int,
        state: Arrays,
        inference: Inference | None,
    ) -> None:
        torch.set_num_threads(plan.actor_torch_threads)
        self._worker = make_worker(
            config,
            lanes=plan.lanes,
            threads=plan.env_threads,
            actor=actor,
            actors=plan.actors,
            incarnation=incarnation,
            inference=inference,
        )
        if state:
            self._worker.restore(state)
        self._cpu_s = time.process_time()

    def collect(self, weights: Weights, progress: float) -> tuple[Unroll, Meta]:
        result = self._worker.collect(weights, progress)
        unroll, seconds = result.unroll, dict(result.seconds)
        # What is neither: bookkeeping, and since the last time serialisation and Ray's threads.
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        seconds["other_cpu"] = cpu_s - seconds["environment_cpu"] - seconds["inference_cpu"]
        return unroll, Meta(unroll.steps, unroll.weights_version, result.episodes, seconds)

    def state(self) -> Arrays:
        return self._worker.state()


class LearnerActor:
    """A thin shell around ``Learner``. Batches are staged by a thread of their own, while it learns."""

    def __init__(self, config: RunConfig, plan: Plan, state: Arrays | None) -> None:
        self._learner = make_learner(config, min(plan.learner_threads, machine.cores()))
        if state is not None:
            self._learner.restore(state)
        self._staged: deque[StagedBatch] = deque()
        self._cpu_s = time.process_time()

    @ray.method(concurrency_group="staging")
    def stage(self, *unrolls: Unroll) -> None:
        """The next batch for ``run``."""
        self._staged.append(self._learner.stage(unrolls))

    def run(self, progress: float, _staged: None) -> tuple[StepReport, Weights]:
        """Learn from the oldest staged batch. ``_staged`` is there once it is."""
        at = time.perf_counter()
        report = self._learner.learn(self._staged.popleft(), progress)
        learner_s = time.perf_counter() - at
        # Since the last report: serialisation and Ray's threads are in it.
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        report = replace(report, metrics={**report.metrics, "learn_cpu_s": cpu_s, "learner_s": learner_s})
        return report, self._learner.weights()

    def weights(self) -> Weights:
        return self._learner.weights()

    def state(self) -> Arrays:
        return self._learner.state()

    def recover(self, state: Arrays, lr_factor: float) -> None:
        self._learner.recover(state, lr_factor)


@ray.remote
def _evaluate(config: RunConfig, weights: Weights, protocol: EvalProtocol) -> EvalReport:
    torch.set_num_threads(1)
    network = make_network(config)
    set_weights(network, weights.arrays)
    return evaluate(network, config.env, protocol, machine.cores())


class RayRollouts:
    """One rollout actor per plan.actors; one that dies is replaced by its next incarnation."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        states: Sequence[Arrays],
        incarnation: int,
        inference: Any = None,
    ) -> None:
        """``inference``: the handle of an ``InferenceActor`` that the actors share."""
        self._config = config
        self._plan = plan
        self._inference = inference
        self._actor_class = ray.remote(num_cpus=plan.env_threads, max_restarts=0)(RolloutActor)
        self._incarnations = [incarnation] * plan.actors
        self._actors = [self._spawn(i, states[i] if states else {}) for i in range(plan.actors)]
        self._pending: dict[int, tuple[Ref, Ref]] = {}  # (unroll, what is told of it) by actor
        self._asked: tuple[Ref, float] = (None, 0.0)
        self.restarts = 0

    @property
    def n_actors(self) -> int:
        return len(self._actors)

    @property
    def under_way(self) -> int:
        return len(self._pending)

    def submit(self, weights: Ref, progress: float) -> None:
        if self._inference is not None and weights is not self._asked[0]:
            self._inference.load.remote(weights)
        self._asked = weights, progress
        for index in range(self.n_actors):
            if index not in self._pending:
                self._collect(index)

    def gather(self, least: int, unless: Ref = None) -> list[Collected[Ref]]:
        collected: dict[int, Collected[Ref]] = {}
        wanted = min(least, self.under_way)
        while len(collected) < wanted:
            ready = self._ready(wanted - len(collected), unless)
            if ready is None:
                break
            for index in ready:
                unroll, meta_ref = self._pending.pop(index)
                try:
                    meta: Meta = get(meta_ref)
                except RayActorError as error:
                    if isinstance(error, RayTaskError) or error.actor_init_failed:
                        raise  # not this actor's death: another's, or a defect that would repeat
                    # The dead actor's unroll is lost; its successor makes another.
                    self._replace(index, error)
                    self._collect(index)
                else:
                    collected[index] = Collected(
                        unroll, index, meta.steps, meta.weights_version, meta.episodes, meta.seconds
                    )
        return [collected[index] for index in sorted(collected)]

    def state(self) -> list[Arrays]:
        refs = [actor.state.remote() for actor in self._actors]
        states: list[Arrays] = []
        for index, ref in enumerate(refs):
            try:
                states.append(get(ref))
            except RayActorError as error:
                self._replace(index, error)
                states.append({})
        return states

    def evaluate(self, weights: Ref, protocol: EvalProtocol) -> EvalReport:
        # The actors wait meanwhile: the evaluation uses their cores and asks for none of its own.
        report: EvalReport = get(_evaluate.options(num_cpus=0).remote(self._config, weights, protocol))
        return report

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        if self._inference is not None:
            ray.kill(self._inference)

    def _spawn(self, index: int, state: Arrays) -> Any:
        incarnation = self._incarnations[index]
        inference = None if self._inference is None else SharedInference(RayServer(self._inference), index)
        return self._actor_class.remote(self._config, self._plan, index, incarnation, state, inference)

    def _collect(self, index: int) -> None:
        unroll, meta = self._actors[index].collect.options(num_returns=2).remote(*self._asked)
        self._pending[index] = unroll, meta

    def _ready(self, least: int, unless: Ref) -> list[int] | None:
        """The actors whose unrolls are there, once they are at least so many; None if ``unless`` is first."""
        indices = {meta: index for index, (_, meta) in self._pending.items()}
        while True:
            ready, _ = ray.wait(list(indices), num_returns=len(indices), timeout=0, fetch_local=False)
            if len(ready) >= least:
                return sorted(indices[ref] for ref in ready)
            if unless is None:
                wait_for(list(indices), least)
            elif is_there(unless):
                return None
            else:
                # Another unroll, or what else is awaited.
                wait_for([unless, *indices], 1 + len(ready))

    def _replace(self, index: int, error: RayActorError) -> None:
        """Put the next incarnation in a dead actor's place. Raises ``RuntimeError`` after too many."""
        self.restarts += 1
        if self.restarts > self._config.system.max_restarts:
            raise RuntimeError(
                f"rollout actor {index} died, and {self.restarts - 1} restarts were used up"
            ) from error
        self._incarnations[index] += 1
        self._actors[index] = self._spawn(index, {})


class RayLearner:
    """A learner actor, by handle: it has ``run(progress, *arguments)``, ``weights`` and ``state``.

    arguments: what ``run`` is called with for an order.
    """

    concurrent = True

    def __init__(self, actor: Any, arguments: Callable[[Order], Sequence[Any]] = lambda order: order) -> None:
        self._actor = actor
        self._arguments = arguments
        self._weights: Ref = actor.weights.remote()
        self._orders: deque[tuple[Ref, Ref]] = deque()  # (report, weights)

    @property
    def in_flight(self) -> int:
        return len(self._orders)

    @property
    def free(self) -> bool:
        return len(self._orders) < _ORDERS

    @property
    def next_report(self) -> Ref | None:
        return self._orders[0][0] if self._orders else None

    def submit(self, order: Order, progress: float) -> None:
        run = self._actor.run.options(num_returns=2)
        self._orders.append(run.remote(progress, *self._arguments(order)))

    def poll(self, *, block: bool) -> StepReport | None:
        if not self._orders:
            return None
        report_ref, weights_ref = self._orders[0]
        if not block and not is_there(report_ref):
            return None
        report: StepReport = get(report_ref)
        del self._orders[0]
        self._weights = weights_ref
        return report

    def weights(self) -> Ref:
        """Those of the newest order polled: of one that goes on, nobody knows when they come."""
        return self._weights

    def state(self) -> Arrays:
        state: Arrays = get(self._actor.state.remote())
        return state

    def recover(self, state: Arrays, lr_factor: float) -> None:
        get(self._actor.recover.remote(state, lr_factor))
        self._weights = self._actor.weights.remote()

    def close(self) -> None:
        ray.kill(self._actor)


def ray_rollouts(
    config: RunConfig, plan: Plan, states: Sequence[Arrays], incarnation: int, *, gpu: bool
) -> RayRollouts:
    """Actors with networks of their own, or with the one that they share."""
    shared = config.rollout.inference == "shared"
    inference = inference_actor(config, gpus=0.5 * gpu) if shared else None
    return RayRollouts(config, plan, states, incarnation, inference)


def learner_gpus(config: RunConfig, *, gpu: bool) -> float:
    """What the learner reserves: a shared inference actor gets the other half."""
    return gpu * (0.5 if config.rollout.inference == "shared" else 1.0)


def ray_learner(config: RunConfig, plan: Plan, state: Arrays | None, *, gpu: bool) -> RayLearner:
    """A learner that takes each unroll once."""
    actor_class = ray.remote(  # type: ignore[call-overload]  # which knows no concurrency groups
        # In turn with the actors, it uses their cores and reserves none.
        num_cpus=0 if plan.in_turn else plan.learner_threads,
        num_gpus=learner_gpus(config, gpu=gpu),
        concurrency_groups={"staging": 1},
    )(LearnerActor)
    actor: Any = actor_class.remote(config, plan, state)
    return RayLearner(actor, lambda unrolls: (actor.stage.remote(*unrolls),))


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has to spare."""

    cores: int
    gpu: bool
    memory_bytes: float
    largest_memory_bytes: float
    """Of one node."""


@contextmanager
def connected(address: str | None, dashboard_port: int | None, *, cores: int) -> Iterator[Resources]:
    """Ray, started here with room for ``cores`` (address None) or joined.

    Raises ``UserError`` where it can't be.
    """
    local = address is None
    if local and dashboard_port is not None:
        _check_port(dashboard_port)
    try:
        if local:
            ray.init(
                address="local",
                num_cpus=max(machine.cores(), cores),
                include_dashboard=dashboard_port is not None,
                dashboard_port=dashboard_port,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot reach Ray at {address or 'local'} ({reason}); start it: ray start --head"
        ) from error
    try:
        # What others hold is not there for this run: it would wait for it without a word.
        resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        yield Resources(
            max(1, int(resources.get("CPU", 1))),
            resources.get("GPU", 0) >= 1,
            resources.get("memory", 0.0),
            max(node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"]),
        )
    finally:
        ray.shutdown()


def put(value: Any) -> Ref:
    """A reference to a copy in Ray's shared memory."""
    return ray.put(value)


def get(refs: Any) -> Any:
    """``ray.get`` that returns to Python often, so that signals are handled while it waits."""
    many = refs if isinstance(refs, list) else [refs]
    wait_for(many, len(many))
    return ray.get(refs)


def wait_for(refs: list[Ref], count: int) -> None:
    """Wait until ``count`` of ``refs`` are there, returning to Python often."""
    while len(ray.wait(refs, num_returns=count, timeout=_POLL_S, fetch_local=False)[0]) < count:
        pass


def is_there(ref: Ref) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # As Ray's own server does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} is taken ({error.strerror}); choose another system.dashboard_port"
            ) from error
