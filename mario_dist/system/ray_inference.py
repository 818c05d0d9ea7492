"""One actor that computes the policy for the lanes of all rollout actors, on the GPU where there is one."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from mario_dist.config import RunConfig
from mario_dist.learner.device import choose_device
from mario_dist.rollout import Answer, InferenceServer, Request
from mario_dist.system.build import make_network
from mario_dist.system.plan import Plan
from mario_dist.system.ray import beside_learner
from mario_dist.types import F32, U8, Weights

_RETRY_S = 0.1
_PATIENCE_S = 120.0


class InferenceActor:
    """A thin shell around ``InferenceServer``: what came in while one batch was computed is the next."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(1)
        network = make_network(config).to(choose_device(config.learner.device))
        self._server = InferenceServer(network, config.env.frame_stack)
        self._device = ThreadPoolExecutor(1)  # so that this process takes in requests meanwhile
        self._waiting: list[tuple[Request, asyncio.Future[Answer | None]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def look(self, request: Request) -> Answer | None:
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

    async def values(self, stack_BKHW: U8) -> F32:
        values: F32 = await self._compute(self._server.values, stack_BKHW)
        return values

    async def load(self, weights: Weights) -> None:
        await self._compute(self._server.load, weights)

    async def _serve(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._compute(self._server.look, [request for request, _ in batch])
            except Exception as error:  # whoever asked must hear it
                for _, answer in batch:
                    answer.set_exception(error)
                continue
            for (_, future), found in zip(batch, answers, strict=True):
                future.set_result(found)

    async def _compute(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._device, call, *arguments)


class RayServer:
    """That actor, as its clients see it. Ray restarts it when it died, behind the same handle and empty."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def look(self, request: Request) -> Answer | None:
        """None where it is not known whether newest frames arrived: sent twice, they would count twice."""
        answer: Answer | None = self._ask("look", request, again=request.first_N is None)
        return answer

    def load(self, weights: Weights) -> None:
        self._ask("load", weights)

    def values(self, stack_BKHW: U8) -> F32:
        values: F32 = self._ask("values", stack_BKHW)
        return values

    def _ask(self, method: str, argument: Any, *, again: bool = True) -> Any:
        """The answer: with ``again`` of the next life where the actor dies, else None then.

        Raises ``RayActorError`` where none comes.
        """
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ray.get(getattr(self._actor, method).remote(argument))
            except RayActorError as error:
                if isinstance(error, RayTaskError) or error.actor_init_failed or time.monotonic() > until:
                    raise
                if not again:
                    return None
                time.sleep(_RETRY_S)


def inference_actor(config: RunConfig, plan: Plan, *, gpus: float) -> Any:
    """Its handle. On the CPU it reserves one core."""
    actor_class: Any = ray.remote(
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
        **beside_learner(plan),
        max_restarts=-1,
        max_concurrency=1_000,  # type: ignore[call-overload]  # which knows no asynchronous actors
    )(InferenceActor)
    return actor_class.remote(config)
