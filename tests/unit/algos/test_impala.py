"""IMPALA's loss on whole batches, against its formula written as loops over raw steps."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.noise import ACTIONS, N, PixelValue, T, a_batch, play

from mario_dist.algos.api import LossOut
from mario_dist.algos.impala import Impala, ImpalaConfig
from mario_dist.types import Unroll


class Biased(PixelValue):
    """Its policy is not uniform, so that ratios differ from action to action."""

    def __init__(self) -> None:
        super().__init__()
        self.bias.data = torch.linspace(-1.0, 1.0, ACTIONS)


def loss_of(config: ImpalaConfig, *unrolls: Unroll, progress: float = 0.0) -> tuple[LossOut, Biased]:
    """Of the whole batch at once."""
    batch, network = a_batch(*unrolls), Biased()
    impala = Impala(config)
    samples = impala.prepare(network, batch)  # type: ignore[arg-type]
    ((index_B,),) = impala.minibatches(batch, samples, torch.Generator())
    return impala.loss(network, batch, samples, index_B, progress), network  # type: ignore[arg-type]


def expected_losses(config: ImpalaConfig, unroll: Unroll, next_value: np.ndarray) -> tuple[float, float]:
    """The policy's and the value's loss, step by step; the values that ``play`` gives are the network's."""
    log_pi = Biased().bias.detach().double().log_softmax(-1).numpy()
    ratio = np.exp(log_pi[unroll.action] - unroll.log_prob)
    value = unroll.value.astype(np.float64)
    target = np.zeros((T, N))
    advantage = np.zeros((T, N))
    for n in range(N):
        correction = 0.0  # v_{t+1} - V(x_{t+1})
        for t in reversed(range(T)):
            after = 0.0 if unroll.terminated[t, n] else float(next_value[t, n])
            if unroll.terminated[t, n] or unroll.truncated[t, n]:
                correction = 0.0
            advantage[t, n] = unroll.reward[t, n] + config.gamma * (after + correction) - value[t, n]
            error = unroll.reward[t, n] + config.gamma * after - value[t, n]
            trace = config.vtrace_lambda * min(config.c_clip, ratio[t, n])
            correction = min(config.rho_clip, ratio[t, n]) * error + config.gamma * trace * correction
            target[t, n] = value[t, n] + correction
    if config.clip is None:
        policy = -(np.minimum(config.rho_clip, ratio) * advantage * log_pi[unroll.action]).mean()
    else:
        # The policy is still the one that the batch was prepared with, so no ratio to that one is clipped.
        policy = -(np.minimum(config.rho_clip, ratio) * advantage).mean()
    return float(policy), float(((value - target) ** 2).mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "config",
    [
        ImpalaConfig(gamma=0.9),
        ImpalaConfig(gamma=0.8, vtrace_lambda=0.6, rho_clip=1.4, c_clip=0.7),
        ImpalaConfig(gamma=0.9, clip=0.2),
    ],
    ids=["vtrace", "lambda and clips", "appo"],
)
def test_the_loss_is_the_formula(seed: int, config: ImpalaConfig) -> None:
    unroll, next_value = play(seed)
    assert len(unroll.final_t)
    assert unroll.terminated.any()
    out, _ = loss_of(config, unroll)
    policy, value = expected_losses(config, unroll, next_value)
    assert float(out.metrics["policy_loss"]) == pytest.approx(policy, rel=1e-4, abs=1e-5)
    assert float(out.metrics["value_loss"]) == pytest.approx(value, rel=1e-4)
    pi = Biased().bias.detach().softmax(-1)
    entropy = -float(pi @ pi.log())
    assert float(out.metrics["entropy"]) == pytest.approx(entropy, rel=1e-5)
    total = policy + config.value_coef * value - config.entropy_coef[0] * entropy
    assert float(out.loss.detach()) == pytest.approx(total, rel=1e-4)


def test_lanes_of_several_actors_are_each_learned_alone() -> None:
    (first, first_next), (second, second_next) = play(1), play(2)
    config = ImpalaConfig(gamma=0.9)
    both, _ = loss_of(config, first, second)
    alone = [expected_losses(config, *pair) for pair in ((first, first_next), (second, second_next))]
    assert float(both.metrics["policy_loss"]) == pytest.approx(np.mean([p for p, _ in alone]), rel=1e-4)
    assert float(both.metrics["value_loss"]) == pytest.approx(np.mean([v for _, v in alone]), rel=1e-4)


def test_minibatches_share_the_targets_of_the_whole_batch() -> None:
    """Cut up in any order, their mean loss is the whole's; every sample is in one of them."""
    (first, _), (second, _) = play(1), play(2)
    whole, _ = loss_of(ImpalaConfig(gamma=0.9), first, second)
    batch, network = a_batch(first, second), Biased()
    count = 2 * T * N
    impala = Impala(ImpalaConfig(gamma=0.9, minibatch=10))
    samples = impala.prepare(network, batch)  # type: ignore[arg-type]
    assert samples is not None
    assert not samples.target_B.requires_grad
    (cut,) = impala.minibatches(batch, samples, torch.Generator().manual_seed(0))
    order = torch.cat(cut).tolist()
    assert sorted(order) == list(range(count))
    assert order != sorted(order)
    assert [len(index_B) for index_B in cut] == [10] * (count // 10) + [count % 10]
    for name in ("policy_loss", "value_loss", "rho_mean"):
        parts = [
            float(impala.loss(network, batch, samples, index_B, 0.0).metrics[name]) * len(index_B)  # type: ignore[arg-type]
            for index_B in cut
        ]
        assert sum(parts) / count == pytest.approx(float(whole.metrics[name]), rel=1e-4)
    same_size = Impala(ImpalaConfig(minibatch=count))
    assert same_size.prepare(network, batch) is None, "one pass is enough"  # type: ignore[arg-type]


def test_the_gradient_raises_what_was_better_than_expected() -> None:
    """Towards actions with a positive advantage, and not through the targets into the value."""
    unroll, _ = play(3)
    unroll = replace(
        unroll,
        action=np.zeros_like(unroll.action),
        reward=np.full_like(unroll.reward, 100.0),
        log_prob=np.full_like(unroll.log_prob, -math.log(ACTIONS)),
    )
    out, network = loss_of(ImpalaConfig(entropy_coef=(0.0, 0.0), value_coef=0.0), unroll)
    out.loss.backward()
    assert network.bias.grad is not None
    assert network.bias.grad[0] < 0 < network.bias.grad[1:].min()


@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("behaviour", [-10.0, -math.log(ACTIONS)])
def test_the_clipped_surrogate_stops_at_its_clip(clip: float | None, shift: float, behaviour: float) -> None:
    """A policy that likes a good action far more than it did when the batch came is not driven on, however
    the behaviour policy liked it; V-trace's plain gradient drives it on, with the ratio clipped."""
    unroll, _ = play(3)
    good = replace(
        unroll,
        action=np.full_like(unroll.action, ACTIONS - 1),
        reward=np.full_like(unroll.reward, 100.0),
        log_prob=np.full_like(unroll.log_prob, behaviour),
    )
    impala = Impala(ImpalaConfig(clip=clip, entropy_coef=(0.0, 0.0), value_coef=0.0, minibatch=T * N - 1))
    batch, network = a_batch(good), Biased()
    samples = impala.prepare(network, batch)  # type: ignore[arg-type]
    before = float(network.bias.detach().log_softmax(-1)[-1])
    with torch.no_grad():
        network.bias[-1] += shift
    ratio = math.exp(float(network.bias.detach().log_softmax(-1)[-1]) - before)
    assert ratio == pytest.approx({0.0: 1.0, 0.1: 1.06, 0.5: 1.29}[shift], abs=0.01)
    impala.loss(network, batch, samples, torch.arange(T * N), 0.0).loss.backward()  # type: ignore[arg-type]
    assert network.bias.grad is not None
    assert bool(network.bias.grad.abs().max() > 0) is (clip is None or ratio < 1 + clip)


def test_the_surrogate_weighs_with_what_lies_between_behaviour_and_the_policy_that_the_batch_met() -> None:
    """min(rho_clip, pi_prox / mu), beside the ratio pi / pi_prox; by hand, for each sample."""
    unroll, _ = play(4)
    impala = Impala(ImpalaConfig(clip=0.2, rho_clip=1.1, minibatch=T * N - 1))
    batch, network = a_batch(unroll), Biased()
    samples = impala.prepare(network, batch)  # type: ignore[arg-type]
    assert samples is not None
    proximal = Biased().bias.detach().double().log_softmax(-1).numpy()[unroll.action]
    np.testing.assert_allclose(samples.log_prob_B.view(T, N).numpy(), proximal, rtol=1e-5)
    with torch.no_grad():
        network.bias[0] += 0.4
    now = network.bias.detach().double().log_softmax(-1).numpy()[unroll.action]
    weighed = np.minimum(1.1, np.exp(proximal - unroll.log_prob)) * samples.advantage_B.view(T, N).numpy()
    ratio = np.exp(now - proximal)
    expected = -np.minimum(ratio * weighed, np.clip(ratio, 0.8, 1.2) * weighed).mean()
    out = impala.loss(network, batch, samples, torch.arange(T * N), 0.0)  # type: ignore[arg-type]
    assert float(out.metrics["policy_loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.01},
        {"vtrace_lambda": -0.1},
        {"rho_clip": 0.0},
        {"c_clip": 0.0},
        {"clip": -1.0},
        {"max_grad_norm": 0.0},
        {"optimiser_eps": 0.0},
        {"lr": (1e-3, -1e-3)},
        {"reuse": 0},
        {"reuse_buffer": 0},
        {"batch_unrolls": -1},
        {"minibatch": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImpalaConfig(**wrong)
