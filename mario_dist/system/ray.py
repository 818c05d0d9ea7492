"""The learner on Ray, and how this process, which conducts, waits for what others make.

Unrolls and weights travel as references: from rollout actor to learner and back, never through here.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

# Ray would run every worker through `uv run` on a copy of the working directory when it sees uv as the
# parent; the workers of this machine use this very environment, others bring their own.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray's default for actors without GPUs changes in a coming version and warns of it; this is the new one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from mario_dist import machine
from mario_dist.config import RunConfig
from mario_dist.errors import UserError
from mario_dist.learner import StagedBatch
from mario_dist.system.build import make_learner
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Order
from mario_dist.types import Arrays, StepReport, Unroll, Weights

Ref = Any
"""A ``ray.ObjectRef``; Ray's actor handles are untyped, so its references are too."""

LEARNER = "learner"
"""The resource by which a cluster names the nodes for the learner and what belongs beside it."""

_SHARE = 0.001
_POLL_S = 0.5
_ORDERS = 2
"""Orders that a learner may have at once: it never waits for this process between two."""

_TELL_AFTER_S = 30.0
_FETCH_S = 5.0
"""How long a learner waits for the next unroll of a batch to arrive: where it was made may be gone."""


class LearnerActor:
    """A thin shell around ``Learner``. Batches are staged by a thread of their own, while it learns."""

    def __init__(self, config: RunConfig, plan: Plan, state: Arrays | None) -> None:
        self._learner = make_learner(config, min(plan.learner_threads, machine.cores()))
        if state is not None:
            self._learner.restore(state)
        self._staged: deque[StagedBatch | None] = deque()
        self._lost = 0
        self._cpu_s = time.process_time()

    @ray.method(concurrency_group="staging")
    def stage(self, refs: Sequence[Ref]) -> None:
        """The next batch for ``run``: of these, the unrolls that did not go with their node."""
        unrolls = _fetch(refs)
        self._lost += len(refs) - len(unrolls)
        self._staged.append(self._learner.stage(unrolls) if unrolls else None)

    def run(self, progress: float, _staged: None) -> tuple[StepReport, Weights]:
        """Learn from the oldest staged batch. ``_staged`` is there once it is."""
        at = time.perf_counter()
        staged = self._staged.popleft()
        if staged is None:
            report = StepReport(self._learner.version, 0, {"policy_lag": 0.0})
        else:
            report = self._learner.learn(staged, progress)
        learner_s = time.perf_counter() - at
        # Since the last report: serialisation and Ray's threads are in it.
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        extra = {"learn_cpu_s": cpu_s, "learner_s": learner_s}
        if self._lost:
            extra["lost_unrolls"] = float(self._lost)
        return replace(report, metrics={**report.metrics, **extra}), self._learner.weights()

    def weights(self) -> Weights:
        return self._learner.weights()

    def state(self) -> Arrays:
        return self._learner.state()

    def recover(self, state: Arrays, lr_factor: float) -> None:
        self._learner.recover(state, lr_factor)


def _fetch(refs: Sequence[Ref]) -> list[Unroll]:
    """The unrolls that can be had, in their order."""
    there: set[Ref] = set()
    while len(there) < len(refs):
        missing = [ref for ref in refs if ref not in there]
        come, _ = ray.wait(missing, num_returns=1, timeout=_FETCH_S)
        if not come:
            break
        there.update(come)
    unrolls: list[Unroll] = []
    for ref in refs:
        if ref in there:
            with suppress(ObjectLostError):
                unroll: Any = ray.get(ref)
                unrolls.append(unroll)
    return unrolls


def learner_died() -> UserError:
    """What to tell where the learner, or the weights that it made, went with its process or its node."""
    return UserError(
        "the learner died, with its process or its node, and the run ends here; 'mario-dist train --resume'"
        " or the same --run-id goes on from the last checkpoint"
    )


@contextmanager
def _learner_alive() -> Iterator[None]:
    """Raises ``learner_died()`` where the learner is asked meanwhile and dies."""
    try:
        yield
    except RayActorError as error:
        if isinstance(error, RayTaskError) or error.actor_init_failed:
            raise  # a defect, which would repeat
        raise learner_died() from error


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

    def wait_until_there(self, note: Callable[[str], None], should_stop: Callable[[], bool]) -> None:
        """Return once it runs, and say so where it has to wait for its place.

        Raises ``KeyboardInterrupt`` where ``should_stop``.
        """
        told_at = time.monotonic() + _TELL_AFTER_S
        while not wait_a_while([self._weights]):
            if should_stop():
                raise KeyboardInterrupt
            if time.monotonic() > told_at:
                note("the learner waits for its place on the cluster (ray status shows what it asks for)")
                told_at = math.inf
        with _learner_alive():
            get(self._weights)

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
        with _learner_alive():
            report: StepReport = get(report_ref)
        del self._orders[0]
        self._weights = weights_ref
        return report

    def weights(self) -> Ref:
        """Those of the newest order polled: of one that goes on, nobody knows when they come."""
        return self._weights

    def state(self) -> Arrays:
        with _learner_alive():
            state: Arrays = get(self._actor.state.remote())
        return state

    def recover(self, state: Arrays, lr_factor: float) -> None:
        with _learner_alive():
            get(self._actor.recover.remote(state, lr_factor))
        self._weights = self._actor.weights.remote()

    def close(self) -> None:
        ray.kill(self._actor)


def learner_options(config: RunConfig, plan: Plan, *, gpu: bool) -> dict[str, Any]:
    """Where a learner runs and what it reserves: of the GPU, a shared inference actor gets the other half."""
    return {
        # In turn with the actors, it uses their cores and reserves none.
        "num_cpus": 0 if plan.in_turn else plan.learner_threads,
        "num_gpus": gpu * (0.5 if config.rollout.inference == "shared" else 1.0),
        **beside_learner(plan),
    }


def beside_learner(plan: Plan) -> dict[str, Any]:
    """The options of what belongs on the learner's node, where the cluster has one."""
    return {"resources": {LEARNER: _SHARE}} if plan.learner_node else {}


def ray_learner(config: RunConfig, plan: Plan, state: Arrays | None, *, gpu: bool) -> RayLearner:
    """A learner that takes each unroll once."""
    actor_class = ray.remote(  # type: ignore[call-overload]  # which knows no concurrency groups
        **learner_options(config, plan, gpu=gpu),
        concurrency_groups={"staging": 1},
    )(LearnerActor)
    actor: Any = actor_class.remote(config, plan, state)
    # In a list, since Ray would refuse to call it with what is lost.
    return RayLearner(actor, lambda unrolls: (actor.stage.remote(list(unrolls)),))


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


def wait_a_while(refs: list[Ref]) -> bool:
    """Wait for any of ``refs``, or half a second; whether one is there."""
    if not refs:
        time.sleep(_POLL_S)
        return False
    return bool(ray.wait(refs, num_returns=1, timeout=_POLL_S, fetch_local=False)[0])


def is_there(ref: Ref) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])
