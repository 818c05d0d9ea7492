"""What the lanes do, given what the network says."""

import pytest
import torch

from mario_dist.nets import NetOut
from mario_dist.rollout import EpsilonGreedy, SamplingPolicy

N, A = 4000, 5


def out(best: int = 2) -> NetOut:
    q_BA = torch.zeros(N, A)
    q_BA[:, best] = 1.0
    return NetOut(q_BA, q_BA.max(-1).values)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_explores_as_often_as_said(epsilon: float) -> None:
    epsilon_N = torch.full((N,), epsilon)
    act = EpsilonGreedy(epsilon_N, epsilon_N, share=1.0).act(out(), 0.5, generator(), slice(None))
    share = torch.bincount(act.action_N, minlength=A) / N
    expected = torch.full((A,), epsilon / A)
    expected[2] += 1.0 - epsilon
    assert (share - expected).abs().max() < 0.03
    torch.testing.assert_close(act.log_prob_N.exp(), expected[act.action_N])


def test_every_lane_has_its_own_epsilon() -> None:
    epsilon_N = torch.tensor([0.0, 1.0]).repeat(N // 2)
    act = EpsilonGreedy(epsilon_N, epsilon_N, share=1.0).act(out(), 0.0, generator(), slice(None))
    assert (act.action_N[0::2] == 2).all()
    assert (act.action_N[1::2] == 2).float().mean() < 0.3


def test_a_schedule_ends_where_its_share_of_the_run_does() -> None:
    policy = EpsilonGreedy(torch.tensor([1.0]), torch.tensor([0.1]), share=0.2)
    values = [float(policy.epsilon_N(p)) for p in (0.0, 0.1, 0.2, 0.7, 1.0)]
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])


def test_sampling_draws_from_the_softmax() -> None:
    logits_BA = torch.tensor([[0.0, 1.0, 2.0]]).repeat(N, 1)
    act = SamplingPolicy().act(NetOut(logits_BA, torch.zeros(N)), 0.0, generator(), slice(None))
    expected = torch.softmax(logits_BA[0], -1)
    assert (torch.bincount(act.action_N, minlength=3) / N - expected).abs().max() < 0.03
    torch.testing.assert_close(act.log_prob_N.exp(), expected[act.action_N])
