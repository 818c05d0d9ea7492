"""Advantages against a slow oracle written from the definition, and against Stable-Baselines3."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.algorithms.impala.torch.vtrace_torch_v2 import vtrace_torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from mario_dist.ops.returns import VTrace, explained_variance, gae, n_step_return, vtrace

SEEDS = range(12)


@dataclass(frozen=True)
class Steps:
    """A random unroll. ``final_value_TN`` means something where ``truncated_TN``."""

    reward_TN: Tensor
    value_TN: Tensor
    bootstrap_N: Tensor
    final_value_TN: Tensor
    terminated_TN: Tensor
    truncated_TN: Tensor

    @property
    def end_TN(self) -> Tensor:
        return self.terminated_TN | self.truncated_TN

    def next_value_TN(self) -> Tensor:
        """What ``gae`` is given, with nonsense where it must not look."""
        next_TN = torch.cat([self.value_TN[1:], self.bootstrap_N[None]])
        next_TN = torch.where(self.truncated_TN, self.final_value_TN, next_TN)
        return torch.where(self.terminated_TN, torch.full_like(next_TN, 1e6), next_TN)


def random_steps(seed: int, t_max: int = 17, n: int = 5, end: float = 0.2) -> Steps:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    draw_TN = torch.rand(t_max, n, generator=generator)
    return Steps(
        reward_TN=normal(t_max, n),
        value_TN=normal(t_max, n),
        bootstrap_N=normal(n),
        final_value_TN=normal(t_max, n),
        terminated_TN=draw_TN < end / 2,
        truncated_TN=(draw_TN >= end / 2) & (draw_TN < end),
    )


def oracle(steps: Steps, gamma: float, lam: float) -> Tensor:
    """(1 - lam) * (A1 + lam * A2 + lam^2 * A3 + ...), Schulman et al. 2016, equation 16, by its words.

    A_k is the advantage that looks k steps ahead. Past the last step of the segment there is nothing more
    to see, so every later A_k equals the last one, and the rest of the weights, lam^(h - 1), is its.
    """
    t_max, n = steps.reward_TN.shape
    advantage_TN = torch.zeros_like(steps.reward_TN)
    for lane in range(n):
        for t in range(t_max):
            last = next((i for i in range(t, t_max) if steps.end_TN[i, lane]), t_max - 1)
            if steps.terminated_TN[last, lane]:
                beyond = 0.0
            elif steps.truncated_TN[last, lane]:
                beyond = float(steps.final_value_TN[last, lane])
            else:
                beyond = float(steps.bootstrap_N[lane])
            horizon = last - t + 1

            def look_ahead(
                k: int, t: int = t, lane: int = lane, horizon: int = horizon, beyond: float = beyond
            ) -> float:
                rewards = sum(gamma**i * float(steps.reward_TN[t + i, lane]) for i in range(k))
                seen = beyond if k == horizon else float(steps.value_TN[t + k, lane])
                return rewards + gamma**k * seen - float(steps.value_TN[t, lane])

            advantage_TN[t, lane] = (1 - lam) * sum(
                lam ** (k - 1) * look_ahead(k) for k in range(1, horizon)
            ) + lam ** (horizon - 1) * look_ahead(horizon)
    return advantage_TN


def run_gae(steps: Steps, gamma: float, lam: float) -> Tensor:
    return gae(
        steps.reward_TN,
        steps.value_TN,
        steps.next_value_TN(),
        steps.terminated_TN,
        steps.end_TN,
        gamma=gamma,
        lam=lam,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("gamma", "lam"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.5), (0.7, 0.0), (0.0, 0.9), (1.0, 1.0)]
)
def test_gae_is_the_weighted_sum_of_all_look_aheads(seed: int, gamma: float, lam: float) -> None:
    steps = random_steps(seed, end=(0.0, 0.2, 0.7)[seed % 3])
    torch.testing.assert_close(run_gae(steps, gamma, lam), oracle(steps, gamma, lam), rtol=1e-10, atol=1e-10)


def test_gae_of_one_step_and_of_ends_at_every_step() -> None:
    for steps in (random_steps(0, t_max=1), random_steps(1, t_max=1, end=1.0), random_steps(2, end=1.0)):
        torch.testing.assert_close(run_gae(steps, 0.9, 0.8), oracle(steps, 0.9, 0.8), rtol=1e-10, atol=1e-10)


def test_gae_by_hand() -> None:
    """Two lanes, three steps: lane 0 dies at step 1, lane 1 is truncated at step 1."""
    half, nothing = 0.5, torch.zeros(3, 2)
    terminated = torch.tensor([[False, False], [True, False], [False, False]])
    truncated = torch.tensor([[False, False], [False, True], [False, False]])
    reward = torch.ones(3, 2)
    next_value = torch.tensor([[0.0, 0.0], [99.0, 4.0], [8.0, 8.0]])
    advantage = gae(reward, nothing, next_value, terminated, terminated | truncated, gamma=half, lam=1.0)
    # Lane 0: 1 + 1/2, 1, 1 + 8/2. Lane 1: 1 + (1 + 4/2)/2, 1 + 4/2, 1 + 8/2.
    assert advantage.tolist() == [[1.5, 2.5], [1.0, 3.0], [5.0, 5.0]]


def test_gae_refuses_shapes_that_would_broadcast() -> None:
    steps = random_steps(0)
    with pytest.raises(AssertionError):
        gae(
            steps.reward_TN,
            steps.value_TN,
            steps.bootstrap_N[None],
            steps.terminated_TN,
            steps.end_TN,
            gamma=1.0,
            lam=1.0,
        )


@pytest.mark.parametrize("mutant", ["bootstraps through a death", "carries over a truncation", "forgets lam"])
def test_the_oracle_tells_a_wrong_gae(mutant: str) -> None:
    steps, gamma, lam = random_steps(3), 0.9, 0.8
    terminated_TN, end_TN = steps.terminated_TN, steps.end_TN
    if mutant == "bootstraps through a death":
        terminated_TN = torch.zeros_like(terminated_TN)
    elif mutant == "carries over a truncation":
        end_TN = terminated_TN
    next_value_TN = steps.next_value_TN().clamp(max=10.0)  # the mutant is wrong by more than huge nonsense
    wrong = gae(
        steps.reward_TN,
        steps.value_TN,
        next_value_TN,
        terminated_TN,
        end_TN,
        gamma=gamma,
        lam=1.0 if mutant == "forgets lam" else lam,
    )
    assert not torch.allclose(wrong, oracle(steps, gamma, lam), atol=1e-2)


def sb3_advantages(
    reward_TN: Tensor, value_TN: Tensor, bootstrap_N: Tensor, end_TN: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    t_max, n = reward_TN.shape
    buffer = RolloutBuffer(
        t_max, spaces.Box(0, 1, (1,)), spaces.Discrete(2), "cpu", gae_lambda=lam, gamma=gamma, n_envs=n
    )
    start_N = np.ones(n, dtype=bool)
    for t in range(t_max):
        nothing = np.zeros((n, 1))
        buffer.add(nothing, nothing, reward_TN[t].numpy(), start_N, value_TN[t], torch.zeros(n))
        start_N = end_TN[t].numpy()
    buffer.compute_returns_and_advantage(bootstrap_N, start_N)
    return torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_equals_stable_baselines3_without_truncations(seed: int) -> None:
    steps = random_steps(seed)
    steps = replace(steps, terminated_TN=steps.end_TN, truncated_TN=torch.zeros_like(steps.end_TN))
    theirs, returns = sb3_advantages(
        steps.reward_TN, steps.value_TN, steps.bootstrap_N, steps.end_TN, gamma=0.97, lam=0.9
    )
    ours = run_gae(steps, 0.97, 0.9)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((ours + steps.value_TN).float(), returns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_equals_stable_baselines3_with_truncations_paid_as_reward(seed: int) -> None:
    """Its way to bootstrap a truncation: ``collect_rollouts`` adds the final value to the reward."""
    steps, gamma = random_steps(seed), 0.97
    reward_TN = steps.reward_TN + gamma * torch.where(steps.truncated_TN, steps.final_value_TN, 0.0)
    theirs, _ = sb3_advantages(reward_TN, steps.value_TN, steps.bootstrap_N, steps.end_TN, gamma, lam=0.9)
    torch.testing.assert_close(run_gae(steps, gamma, 0.9).float(), theirs, rtol=1e-5, atol=1e-5)


def log_ratios(steps: Steps, seed: int, spread: float = 0.8) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return spread * torch.randn(steps.reward_TN.shape, generator=generator, dtype=torch.float64)


def run_vtrace(steps: Steps, log_ratio_TN: Tensor, gamma: float, **clips: float) -> VTrace:
    return vtrace(
        log_ratio_TN,
        steps.reward_TN,
        steps.value_TN,
        steps.next_value_TN(),
        steps.terminated_TN,
        steps.end_TN,
        gamma=gamma,
        **clips,
    )


def vtrace_oracle(
    steps: Steps, log_ratio_TN: Tensor, gamma: float, *, lam: float, rho_clip: float, c_clip: float
) -> VTrace:
    """Espeholt et al. 2018, equation 1, as a double loop: each target is a sum over what follows.

    v_s = V(x_s) + sum over t >= s of gamma^(t-s) (c_s ... c_{t-1}) delta_t, where delta_t is
    rho_t (r_t + gamma V(x_{t+1}) - V(x_t)), c_i = lam min(c_clip, ratio_i), rho_i = min(rho_clip, ratio_i).
    The advantage is r_s + gamma v_{s+1} - V(x_s) (section 4.2). An episode's end ends the sum.
    """
    t_max, n = steps.reward_TN.shape
    target_TN, advantage_TN = torch.zeros_like(steps.reward_TN), torch.zeros_like(steps.reward_TN)

    def led_to(t: int, lane: int) -> float:
        """V of the observation that step t led to."""
        if steps.terminated_TN[t, lane]:
            return 0.0
        if steps.truncated_TN[t, lane]:
            return float(steps.final_value_TN[t, lane])
        return float(steps.bootstrap_N[lane] if t == t_max - 1 else steps.value_TN[t + 1, lane])

    def target(s: int, lane: int) -> float:
        total, trace = float(steps.value_TN[s, lane]), 1.0
        for t in range(s, t_max):
            ratio = math.exp(float(log_ratio_TN[t, lane]))
            error = float(steps.reward_TN[t, lane]) + gamma * led_to(t, lane) - float(steps.value_TN[t, lane])
            total += gamma ** (t - s) * trace * min(rho_clip, ratio) * error
            trace *= lam * min(c_clip, ratio)
            if steps.end_TN[t, lane]:
                break
        return total

    for lane in range(n):
        for s in range(t_max):
            target_TN[s, lane] = target(s, lane)
            goes_on = s < t_max - 1 and not steps.end_TN[s, lane]
            after = target(s + 1, lane) if goes_on else led_to(s, lane)
            advantage_TN[s, lane] = steps.reward_TN[s, lane] + gamma * after - steps.value_TN[s, lane]
    return VTrace(target_TN, advantage_TN)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("gamma", "clips"),
    [
        (0.99, {"lam": 1.0, "rho_clip": 1.0, "c_clip": 1.0}),
        (0.9, {"lam": 0.7, "rho_clip": 1.5, "c_clip": 0.9}),
        (1.0, {"lam": 1.0, "rho_clip": 0.5, "c_clip": 2.0}),
        (0.8, {"lam": 0.0, "rho_clip": 1e9, "c_clip": 1e9}),
    ],
)
def test_vtrace_is_the_papers_sum(seed: int, gamma: float, clips: dict[str, float]) -> None:
    steps = random_steps(seed, end=(0.0, 0.2, 0.7)[seed % 3])
    log_ratio_TN = log_ratios(steps, seed)
    ours = run_vtrace(steps, log_ratio_TN, gamma, **clips)
    expected = vtrace_oracle(steps, log_ratio_TN, gamma, **clips)
    torch.testing.assert_close(ours.target_TN, expected.target_TN, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.advantage_TN, expected.advantage_TN, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_vtrace_equals_rllibs(seed: int) -> None:
    """Its ends are discounts of 0, which know no truncation, so a final value is paid as reward; and its
    advantage is weighed with the clipped ratio already."""
    steps, gamma, rho_clip = random_steps(seed), 0.97, 1.3
    log_ratio_TN = log_ratios(steps, seed)
    reward_TN = steps.reward_TN + gamma * torch.where(steps.truncated_TN, steps.final_value_TN, 0.0)
    theirs, their_advantage = vtrace_torch(
        target_action_log_probs=log_ratio_TN,
        behaviour_action_log_probs=torch.zeros_like(log_ratio_TN),
        discounts=gamma * (~steps.end_TN).double(),
        rewards=reward_TN,
        values=steps.value_TN,
        bootstrap_values=steps.bootstrap_N,
        clip_rho_threshold=rho_clip,
        clip_pg_rho_threshold=rho_clip,
    )
    ours = run_vtrace(steps, log_ratio_TN, gamma, rho_clip=rho_clip)
    torch.testing.assert_close(ours.target_TN, theirs, rtol=1e-10, atol=1e-10)
    weighed = log_ratio_TN.exp().clamp(max=rho_clip) * ours.advantage_TN
    torch.testing.assert_close(weighed, their_advantage, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_vtrace_is_the_n_step_return(seed: int) -> None:
    """And so it is what GAE with lambda 1 adds to the value."""
    steps, gamma = random_steps(seed), 0.95
    ours = run_vtrace(steps, torch.zeros_like(steps.reward_TN), gamma)
    expected = steps.value_TN + oracle(steps, gamma, 1.0)
    torch.testing.assert_close(ours.target_TN, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.advantage_TN, expected - steps.value_TN, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mutant", ["no rho clip", "no c clip", "carries over ends", "ratio the other way"])
def test_the_oracle_tells_a_wrong_vtrace(mutant: str) -> None:
    steps, clips = random_steps(5), {"lam": 1.0, "rho_clip": 1.0, "c_clip": 1.0}
    log_ratio_TN = log_ratios(steps, 5)
    expected = vtrace_oracle(steps, log_ratio_TN, 0.9, **clips)
    if mutant == "carries over ends":
        steps = replace(steps, truncated_TN=torch.zeros_like(steps.end_TN))
    wrong = run_vtrace(
        steps,
        -log_ratio_TN if mutant == "ratio the other way" else log_ratio_TN,
        0.9,
        rho_clip=1e9 if mutant == "no rho clip" else 1.0,
        c_clip=1e9 if mutant == "no c clip" else 1.0,
    )
    assert not torch.allclose(wrong.target_TN, expected.target_TN, atol=1e-2)


def test_explained_variance() -> None:
    target = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(target, target) == 1.0
    assert explained_variance(target + 7.0, target) == pytest.approx(1.0)  # a constant error varies nothing
    assert explained_variance(torch.full((4,), 3.0), target) == pytest.approx(0.0)
    assert explained_variance(-target, target) == pytest.approx(-3.0)
    predicted = torch.tensor([0.5, 2.5, 2.0, 4.0])
    expected = 1 - np.var(target.numpy() - predicted.numpy()) / np.var(target.numpy())
    assert explained_variance(predicted, target) == pytest.approx(expected)
    assert math.isnan(explained_variance(target, torch.ones(4)))


def slow_n_step(
    r: list[float], v: list[float], term: list[bool], trunc: list[bool], final: list[float],
    gamma: float, n: int,
) -> list[float]:  # fmt: skip
    """One lane, step by step, from the definition."""
    returns = []
    for t in range(len(r) - n):
        total = 0.0
        for j in range(n):
            total += gamma**j * r[t + j]
            if term[t + j]:
                break
            if trunc[t + j]:
                total += gamma ** (j + 1) * final[t + j]
                break
        else:
            total += gamma**n * v[t + n]
        returns.append(total)
    return returns


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
@pytest.mark.parametrize("p_end", [0.0, 0.2, 0.6])
def test_n_step_returns_are_the_definition(n_step: int, p_end: float) -> None:
    generator = torch.Generator().manual_seed(n_step)
    t, lanes, gamma = 14, 6, 0.9
    reward, value, final = (torch.randn(t, lanes, generator=generator) for _ in range(3))
    terminated = torch.rand(t, lanes, generator=generator) < p_end
    truncated = (torch.rand(t, lanes, generator=generator) < p_end) & ~terminated
    got = n_step_return(reward, value, terminated, truncated, final, gamma=gamma, n_step=n_step)
    assert got.shape == (t - n_step, lanes)
    for lane in range(lanes):
        columns = [x[:, lane].tolist() for x in (reward, value, terminated, truncated, final)]
        expected = slow_n_step(*columns, gamma, n_step)
        torch.testing.assert_close(got[:, lane], torch.tensor(expected), rtol=1e-5, atol=1e-5)
