"""Losses against plain-Python loops over their formulas."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from mario_dist.ops.losses import approx_kl, clipped_surrogate, entropy, value_loss


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_clipped_surrogate(seed: int, clip: float) -> None:
    log_ratio, advantage = normal(seed, 64) * 0.3, normal(seed + 100, 64)
    terms = []
    for log_r, a in zip(log_ratio.tolist(), advantage.tolist(), strict=True):
        ratio = math.exp(log_r)
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        terms.append(min(ratio * a, clipped * a))
    assert clipped_surrogate(log_ratio, advantage, clip).item() == pytest.approx(-statistics.fmean(terms))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (0.5, 1.0, True), (1.5, -1.0, True), (0.5, -1.0, False), (1.1, 1.0, True)],
)
def test_clipped_surrogate_only_stops_what_would_go_further(
    ratio: float, advantage: float, moves: bool
) -> None:
    """Figure 1 of the paper: flat where a step in the good direction already went far enough."""
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2).backward()
    assert log_ratio.grad is not None
    expected = -ratio * advantage if moves else 0.0
    assert log_ratio.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("clip", [None, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_value_loss(seed: int, clip: float | None) -> None:
    value, old, target = normal(seed, 64), normal(seed + 100, 64), normal(seed + 200, 64)
    terms = []
    for v, o, r in zip(value.tolist(), old.tolist(), target.tolist(), strict=True):
        kept = v if clip is None else o + min(max(v - o, -clip), clip)
        terms.append((kept - r) ** 2)
    assert value_loss(value, old, target, clip).item() == pytest.approx(statistics.fmean(terms))


def test_a_clipped_value_is_not_pulled_further() -> None:
    value = torch.tensor([2.0, 0.05], requires_grad=True)
    value_loss(value, torch.zeros(2), torch.full((2,), 5.0), 0.1).backward()
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([0.0, 0.05 - 5.0])


@pytest.mark.parametrize("seed", range(4))
def test_entropy(seed: int) -> None:
    log_prob = normal(seed, 16, 7).log_softmax(-1)
    rows = [-sum(math.exp(lp) * lp for lp in row) for row in log_prob.tolist()]
    assert entropy(log_prob).item() == pytest.approx(statistics.fmean(rows))
    distribution = torch.distributions.Categorical(logits=log_prob)
    assert entropy(log_prob).item() == pytest.approx(distribution.entropy().mean().item())


def test_entropy_of_a_uniform_and_of_a_sure_policy() -> None:
    assert entropy(torch.zeros(3, 8).log_softmax(-1)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[50.0, 0.0]]).log_softmax(-1)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_approx_kl(seed: int) -> None:
    log_ratio = normal(seed, 64) * 0.5
    terms = [math.exp(lr) - 1 - lr for lr in log_ratio.tolist()]
    assert approx_kl(log_ratio).item() == pytest.approx(statistics.fmean(terms))
    assert min(terms) >= 0.0


def test_approx_kl_estimates_the_kl_of_old_and_new() -> None:
    old, new = normal(1, 5).log_softmax(-1), normal(2, 5).log_softmax(-1)
    expected = (old.exp() * (old - new)).sum().item()  # exact: every action, weighted by the old policy
    assert (old.exp() * ((new - old).exp() - 1 - (new - old))).sum().item() == pytest.approx(expected)
    draws = torch.multinomial(old.exp(), 200_000, True, generator=torch.Generator().manual_seed(0))
    assert approx_kl((new - old)[draws]).item() == pytest.approx(expected, rel=0.02)
