"""The topology in one process: laptops, debugging, tests. Exactly reproducible from a seed."""

from collections.abc import Sequence

import torch

from mario_dist.config import RunConfig
from mario_dist.evaluation import evaluate
from mario_dist.nets import set_weights
from mario_dist.system.build import make_network, make_worker, training_protocol
from mario_dist.system.plan import Plan
from mario_dist.system.ports import Collected
from mario_dist.types import Arrays, EvalReport, Unroll, Weights


class LocalRollouts:
    """Workers that collect one after the other when ``gather`` is called; each uses all threads."""

    def __init__(
        self, config: RunConfig, plan: Plan, states: Sequence[Arrays] = (), incarnation: int = 0
    ) -> None:
        self._config = config
        self._threads = plan.env_threads
        self._torch_threads = plan.actor_torch_threads
        self._workers = [
            make_worker(
                config,
                lanes=plan.lanes,
                threads=plan.env_threads,
                actor=actor,
                incarnation=incarnation,
            )
            for actor in range(plan.actors)
        ]
        for worker, state in zip(self._workers, states, strict=False):
            if state:
                worker.restore(state)
        self._weights: Weights | None = None

    @property
    def n_actors(self) -> int:
        return len(self._workers)

    @property
    def restarts(self) -> int:
        return 0

    def submit(self, weights: Weights) -> None:
        self._weights = weights

    def gather(self) -> list[Collected[Unroll]]:
        assert self._weights is not None, "submit() comes before gather()"
        torch.set_num_threads(self._torch_threads)
        results = [worker.collect(self._weights) for worker in self._workers]
        return [Collected(r.unroll, r.unroll.steps, r.episodes, r.seconds) for r in results]

    def state(self) -> list[Arrays]:
        return [worker.state() for worker in self._workers]

    def evaluate(self, weights: Weights) -> EvalReport:
        torch.set_num_threads(self._torch_threads)
        network = make_network(self._config)
        set_weights(network, weights.arrays)
        return evaluate(network, self._config.env, training_protocol(self._config), self._threads)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
