"""The same gradient steps as the learner's, in a bare loop: what PyTorch leaves to gain at most."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mario_dist.algos.api import Algorithm, Batch
from mario_dist.algos.impala import Impala, ImpalaConfig
from mario_dist.algos.ppo import PPO, PPOConfig
from mario_dist.config import RunConfig
from mario_dist.learner.batch import make_batch
from mario_dist.learner.device import autocast, choose_device
from mario_dist.learner.optim import OptimiserConfig, descend, make_optimiser, set_lr
from mario_dist.nets import ActorCritic
from mario_dist.system.build import make_network
from mario_dist.types import Unroll


@dataclass(frozen=True, slots=True)
class StackedBatch(Batch):
    """A batch with every stack there already: uint8 [S, K, H, W]. An index has one entry, the stack's row."""

    stacks_SKHW: Tensor

    def stack(self, index_BK: Tensor) -> Tensor:
        return torch.index_select(self.stacks_SKHW, 0, index_BK.flatten())


def stacked(batch: Batch) -> StackedBatch:
    """``batch`` with its stacks gathered once and for all."""
    indices = [batch.stack_index_TNK, batch.bootstrap_index_NK, batch.final_index_FK]
    flat_SK = torch.cat([index.flatten(0, -2) for index in indices])
    rows = torch.arange(len(flat_SK), device=flat_SK.device)
    parts = torch.split(rows, [index[..., 0].numel() for index in indices])
    steps_TN1, bootstrap_N1, final_F1 = (
        part.view(*index.shape[:-1], 1) for part, index in zip(parts, indices, strict=True)
    )
    here = {field.name: getattr(batch, field.name) for field in fields(batch)}
    ready = StackedBatch(**here, stacks_SKHW=batch.stack(flat_SK))
    return replace(ready, stack_index_TNK=steps_TN1, bootstrap_index_NK=bootstrap_N1, final_index_FK=final_F1)


def bare_step(config: RunConfig, unroll: Unroll, threads: int) -> Callable[[], None]:
    """Learn from ``unroll`` as the learner does, on stacks that wait on the device.

    Network, loss, optimiser and precision are the learner's; making the batch, copying it, reading metrics
    and everything else of its step are not there.
    """
    device = choose_device(config.learner.device)
    network = make_network(config)
    assert isinstance(network, ActorCritic)
    network.to(device)
    if config.learner.compile:
        network.compile()
    algorithm, optimiser_config, passes = _parts(config.algo)
    optimiser = make_optimiser(network, optimiser_config)
    set_lr(optimiser, optimiser_config.lr[0])
    generator = torch.Generator().manual_seed(config.seed)
    batch = stacked(make_batch([unroll], config.env.frame_stack, device))

    def step() -> None:
        torch.set_num_threads(threads)
        for _ in range(passes):
            samples = algorithm.prepare(network, batch)
            for epoch in algorithm.minibatches(batch, samples, generator):
                for index_B in epoch:
                    with autocast(device, config.learner.precision):
                        loss, _ = algorithm.loss(network, batch, samples, index_B.to(device), 0.0)
                    descend(optimiser, network, loss, optimiser_config.max_grad_norm)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _parts(algo: object) -> tuple[Algorithm[Any], OptimiserConfig, int]:
    """The algorithm, its optimiser's configuration, and how often it takes a batch."""
    if isinstance(algo, PPOConfig):
        return PPO(algo), OptimiserConfig(algo.lr, algo.adam_eps, algo.max_grad_norm), 1
    assert isinstance(algo, ImpalaConfig)
    optimiser = OptimiserConfig(algo.lr, algo.optimiser_eps, algo.max_grad_norm, algo.optimiser)
    return Impala(algo), optimiser, algo.reuse
