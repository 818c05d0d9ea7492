"""Rollout actors on Ray: one that dies has a successor, and on a cluster they come and go with its nodes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
import torch
from ray._private.state import available_resources_per_node
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.evaluation import EvalProtocol, evaluate
from mario_dist.nets import set_weights
from mario_dist.rollout import Inference, SharedInference
from mario_dist.system.build import make_network, make_worker
from mario_dist.system.plan import Plan, most_actors
from mario_dist.system.ports import Collected
from mario_dist.system.ray import Ref, beside_learner, get, is_there, learner_died, wait_a_while, wait_for
from mario_dist.system.ray_inference import RayServer, inference_actor
from mario_dist.types import Arrays, EpisodeRecord, EvalReport, Unroll, Weights

_TELL_AFTER_S = 20.0
_LOOK_EVERY_S = 1.0
"""How often an elastic run looks at what has come and what is free on its cluster."""
_MISSED_S = 90.0
"""After which a node that is gone is known to be, by Ray's own settings too."""
_PATIENCE_S = 120.0
"""How long an actor may take to start in what was free: then somebody else has taken it."""


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

    def node(self) -> str:
        """The id of the node that it runs on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def collect(self, weights: Weights, progress: float) -> tuple[Unroll, Meta]:
        result = self._worker.collect(weights, progress)
        unroll, seconds = result.unroll, dict(result.seconds)
        # What is neither: bookkeeping, and since the last time serialisation and Ray's threads.
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        seconds["other_cpu"] = cpu_s - seconds["environment_cpu"] - seconds["inference_cpu"]
        return unroll, Meta(unroll.steps, unroll.weights_version, result.episodes, seconds)

    def state(self) -> Arrays:
        return self._worker.state()


@ray.remote
def _evaluate(config: RunConfig, weights: Weights, protocol: EvalProtocol) -> EvalReport:
    torch.set_num_threads(1)
    network = make_network(config)
    set_weights(network, weights.arrays)
    return evaluate(network, config.env, protocol, machine.cores())


@dataclass
class _Actor:
    """A rollout actor as the conductor knows it.

    state: what it began with, until it has ``moved`` on. node: where it runs; None while it waits for room.
    pending: its unroll, and what is told of it.
    """

    handle: Any
    starting: Ref
    since: float
    state: Arrays
    node: str | None = None
    pending: tuple[Ref, Ref] | None = None
    moved: bool = False


class RayRollouts:
    """The rollout actors of a run. One that dies loses its unroll, and its next incarnation follows it.

    Where the plan is elastic, only those count that have found room: nobody waits for the others. With
    ``rollout.actors`` there are always so many that run or ask for room, so that an autoscaler brings or
    replaces their nodes; without, there are as many as find room in what is free, and none asks for more.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        states: Sequence[Arrays],
        incarnation: int,
        inference: Any = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """inference: the handle of an ``InferenceActor`` that the actors share. note: tells the user."""
        self._config = config
        self._plan = plan
        self._inference = inference
        self._note = note
        self._actor_class = ray.remote(num_cpus=plan.env_threads, max_restarts=0)(RolloutActor)
        self._first_incarnation = incarnation
        self._incarnations: dict[int, int] = {}
        self._actors: dict[int, _Actor] = {}
        self._asked: tuple[Ref, float] = (None, 0.0)
        self._deaths: list[tuple[str, float]] = []  # on which node, when
        self._looked_at = 0.0
        self._empty_since, self._told = 0.0, False
        self.restarts = 0
        for index in range(plan.actors):
            self._spawn(index, states[index] if index < len(states) else {})

    @property
    def n_actors(self) -> int:
        return sum(self._is_up(actor) for actor in self._actors.values())

    @property
    def under_way(self) -> int:
        return sum(actor.pending is not None for actor in self._actors.values())

    def submit(self, weights: Ref, progress: float) -> None:
        if self._inference is not None and weights is not self._asked[0]:
            self._inference.load.remote(weights)
        self._asked = weights, progress
        self._look()
        for actor in self._actors.values():
            if actor.pending is None and self._is_up(actor):
                self._collect(actor)

    def gather(self, least: int, unless: Ref = None) -> list[Collected[Ref]]:
        self._look()
        if not self._actors or not self.n_actors:
            self._wait_for_room(unless)
        collected: dict[int, Collected[Ref]] = {}
        while len(collected) < min(least, len(collected) + self.under_way):
            ready = self._ready(min(least - len(collected), self.under_way), unless)
            if ready is None:
                break
            for index in ready:
                if (item := self._take(index)) is not None:
                    collected[index] = item
        return [collected[index] for index in sorted(collected)]

    def state(self) -> list[Arrays]:
        states: list[Arrays] = [{} for _ in range(1 + max(self._actors, default=-1))]
        for index, actor in self._actors.items():
            states[index] = actor.state
        refs = {index: actor.handle.state.remote() for index, actor in self._actors.items() if actor.moved}
        for index, ref in refs.items():
            try:
                states[index] = get(ref)
            except ObjectLostError:  # it went with its node, as the next unroll will tell
                states[index] = {}
            except RayActorError as error:
                states[index] = {}
                self._lost(index, error)
        return states

    def evaluate(self, weights: Ref, protocol: EvalProtocol) -> EvalReport:
        # The actors wait meanwhile: the evaluation uses their cores and asks for none of its own.
        task: Any = _evaluate.options(num_cpus=0, **beside_learner(self._plan))
        report: EvalReport = get(task.remote(self._config, weights, protocol))
        return report

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor.handle)
        if self._inference is not None:
            ray.kill(self._inference)

    def _is_up(self, actor: _Actor) -> bool:
        """Where it is not elastic there is room for all, and what is asked of them waits for their start."""
        return actor.node is not None or not self._plan.elastic

    def _spawn(self, index: int, state: Arrays) -> None:
        incarnation = self._incarnations[index] = (
            self._incarnations.get(index, self._first_incarnation - 1) + 1
        )
        inference = None if self._inference is None else SharedInference(RayServer(self._inference), index)
        handle: Any = self._actor_class.remote(self._config, self._plan, index, incarnation, state, inference)
        self._actors[index] = _Actor(handle, handle.node.remote(), time.monotonic(), state)

    def _collect(self, actor: _Actor) -> None:
        actor.pending = actor.handle.collect.options(num_returns=2).remote(*self._asked)

    def _take(self, index: int) -> Collected[Ref] | None:
        """The unroll of an actor that is done; None where it died."""
        actor = self._actors[index]
        assert actor.pending is not None
        (unroll, meta_ref), actor.pending = actor.pending, None
        try:
            meta: Meta = get(meta_ref)
        except ObjectLostError as error:  # the weights, since it gets nothing else
            raise learner_died() from error
        except RayActorError as error:
            self._lost(index, error)
            if not self._plan.elastic:  # its successor makes another
                self._collect(self._actors[index])
            return None
        actor.moved, actor.state = True, {}
        return Collected(unroll, index, meta.steps, meta.weights_version, meta.episodes, meta.seconds)

    def _ready(self, least: int, unless: Ref) -> list[int] | None:
        """The actors whose unrolls are there, once they are at least so many; None if ``unless`` is first."""
        indices = {actor.pending[1]: index for index, actor in self._actors.items() if actor.pending}
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

    def _lost(self, index: int, error: RayActorError) -> None:
        """An actor died. Raises what is no death, and ``RuntimeError`` after too many."""
        if isinstance(error, RayTaskError) or error.actor_init_failed:
            raise error  # not this actor's death: another's, or a defect that would repeat
        actor = self._actors.pop(index)
        ray.kill(actor.handle)  # out of reach, it would keep its cores
        self.restarts += 1
        self._deaths.append((actor.node or "", time.monotonic()))
        most = self._config.system.max_restarts
        if self.restarts > most and (died := self._died_alone()) > most:
            raise RuntimeError(f"rollout actor {index} died, and {died - 1} restarts were used up") from error
        if self._config.rollout.actors or not self._plan.elastic:
            self._spawn(index, {})

    def _died_alone(self) -> int:
        """How many died on nodes that live on: one that goes is nobody's defect, and is missed later."""
        if not self._plan.elastic:
            return self.restarts
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        gone = {node["NodeID"] for node in nodes if not node["Alive"]}
        known_by = time.monotonic() - _MISSED_S
        return sum(node not in gone and at < known_by for node, at in self._deaths)

    def _look(self) -> None:
        """Take in the actors that have started since, and fill what is free on the cluster with others."""
        if not self._plan.elastic or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for index, actor in list(self._actors.items()):
            if actor.node is None and is_there(actor.starting):
                try:
                    actor.node = get(actor.starting)
                except RayActorError as error:
                    self._lost(index, error)
        if not self._config.rollout.actors:
            self._follow()

    def _follow(self) -> None:
        """As many as there is room for. Of those that start, it is not known whether they took theirs."""
        starting = {index: actor for index, actor in self._actors.items() if actor.node is None}
        for index, actor in starting.items():
            if time.monotonic() - actor.since > _PATIENCE_S:
                ray.kill(actor.handle)
                del self._actors[index]
                self.restarts += 1  # its number is used
        free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        room = sum(int(node.get("CPU", 0) // self._plan.env_threads) for node in free.values()) - len(
            starting
        )
        unused = (i for i in range(most_actors(self._config, self._plan)) if i not in self._actors)
        for index in list(islice(unused, max(0, room))):
            self._spawn(index, {})

    def _wait_for_room(self, unless: Ref) -> None:
        """Nobody is there: wait until somebody may be, or a moment; the user is told once each time."""
        now = time.monotonic()
        self._empty_since = self._empty_since or now
        if now - self._empty_since > _TELL_AFTER_S and not self._told:
            self._note("no rollout actor is there: waiting for cores on the cluster (ray status shows it)")
            self._told = True
        starting = [actor.starting for actor in self._actors.values()]
        wait_a_while(starting if unless is None else [*starting, unless])
        self._looked_at = 0.0
        self._look()
        if self.n_actors:
            self._empty_since, self._told = 0.0, False


def ray_rollouts(
    config: RunConfig,
    plan: Plan,
    states: Sequence[Arrays],
    incarnation: int,
    *,
    gpu: bool,
    note: Callable[[str], None] = lambda text: None,
) -> RayRollouts:
    """Actors with networks of their own, or with the one that they share."""
    shared = config.rollout.inference == "shared"
    inference = inference_actor(config, plan, gpus=0.5 * gpu) if shared else None
    return RayRollouts(config, plan, states, incarnation, inference, note)
