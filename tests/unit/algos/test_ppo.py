"""PPO's parts: targets, minibatches, stopping. Its whole update is compared in ``test_ppo_update``."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.noise import ACTIONS, K, N, PixelValue, T, a_batch, play
from torch import Tensor

from mario_dist.algos.ppo import PPO, PPOConfig, Samples
from mario_dist.types import Unroll


@pytest.mark.parametrize("seed", range(6))
def test_targets_bootstrap_from_where_each_step_really_led(seed: int) -> None:
    """With lambda 0 an advantage is one step of reality: r + gamma * V(next) - V, V(next) 0 after a death."""
    (first, first_next), (second, second_next) = play(seed), play(seed + 100)
    samples = PPO(PPOConfig(gamma=0.9, gae_lambda=0.0)).prepare(PixelValue(), a_batch(first, second))  # type: ignore[arg-type]
    next_value = np.concatenate([first_next, second_next], axis=1)
    reward, terminated, value = (
        np.concatenate([getattr(first, name), getattr(second, name)], axis=1)
        for name in ("reward", "terminated", "value")
    )
    assert terminated.any()
    assert len(first.final_t)
    expected = reward + 0.9 * next_value * ~terminated - value
    np.testing.assert_allclose(samples.advantage_B.numpy(), expected.ravel(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(samples.return_B.numpy(), (expected + value).ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_returns_of_lambda_1_are_discounted_rewards_and_the_true_end(seed: int) -> None:
    unroll, next_value = play(seed)
    samples = PPO(PPOConfig(gamma=0.8, gae_lambda=1.0)).prepare(PixelValue(), a_batch(unroll))  # type: ignore[arg-type]
    for n in range(N):
        for t in range(T):
            expected, discount = 0.0, 1.0
            for i in range(t, T):
                expected += discount * float(unroll.reward[i, n])
                discount *= 0.8
                if unroll.terminated[i, n]:
                    break
                if unroll.truncated[i, n] or i == T - 1:
                    expected += discount * float(next_value[i, n])
                    break
            assert float(samples.return_B[t * N + n]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_final_frame_matters_and_the_next_episodes_first_does_not() -> None:
    """The planted fault of many an implementation: bootstrapping from the frame after the reset."""
    unroll, _ = play(0)
    t, n = int(unroll.final_t[0]), int(unroll.final_n[0])
    step = t * N + n

    def advantage(changed: Unroll) -> Tensor:
        return PPO(PPOConfig(gae_lambda=0.0)).prepare(PixelValue(), a_batch(changed)).advantage_B[step]  # type: ignore[arg-type]

    final_frame, frames = unroll.final_frame.copy(), unroll.frames.copy()
    final_frame[0] ^= 255
    frames[t + K, n] ^= 255
    assert advantage(replace(unroll, final_frame=final_frame)) != advantage(unroll)
    assert advantage(replace(unroll, frames=frames)) == advantage(unroll)


def test_targets_know_the_behaviours_values_and_no_gradients() -> None:
    unroll, _ = play(1)
    samples = PPO(PPOConfig()).prepare(PixelValue(), a_batch(unroll))  # type: ignore[arg-type]
    assert np.array_equal(samples.value_B.numpy(), unroll.value.ravel())
    assert np.array_equal(samples.action_B.numpy(), unroll.action.ravel())
    assert np.array_equal(samples.log_prob_B.numpy(), unroll.log_prob.ravel())
    assert not samples.advantage_B.requires_grad
    batch = a_batch(unroll)
    stacks = batch.stack(samples.stack_index_BK)
    assert torch.equal(stacks, batch.stack(batch.stack_index_TNK).flatten(0, 1))


def some_samples(n: int = 50) -> Samples:
    zeros = torch.zeros(n)
    return Samples(torch.zeros(n, K, dtype=torch.int64), zeros.long(), zeros, zeros, zeros, zeros)


@pytest.mark.parametrize(("minibatch", "sizes"), [(20, [20, 16]), (36, [36]), (64, [36]), (1, [1] * 36)])
def test_every_epoch_sees_every_sample_once_in_a_new_order(minibatch: int, sizes: list[int]) -> None:
    ppo = PPO(PPOConfig(epochs=3, minibatch=minibatch))
    batch = a_batch(play(0)[0])
    epochs = ppo.minibatches(batch, some_samples(), torch.Generator().manual_seed(0))
    assert len(epochs) == 3
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert [len(m) for m in epoch] == sizes
        assert sorted(order) == list(range(T * N))
        assert order != sorted(order)
    assert orders[0] != orders[1] != orders[2]
    again = ppo.minibatches(batch, some_samples(), torch.Generator().manual_seed(0))
    assert [torch.cat(epoch).tolist() for epoch in again] == orders


def test_the_loss_is_the_sum_of_its_parts() -> None:
    unroll, _ = play(2)
    batch, network = a_batch(unroll), PixelValue()
    config = PPOConfig(value_coef=0.3, entropy_coef=(0.2, 0.0))
    samples = PPO(config).prepare(network, batch)  # type: ignore[arg-type]
    out = PPO(config).loss(network, batch, samples, torch.arange(10), progress=0.5)  # type: ignore[arg-type]
    parts = {name: float(tensor) for name, tensor in out.metrics.items()}
    assert set(parts) == {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"}
    expected = parts["policy_loss"] + 0.3 * parts["value_loss"] - 0.1 * parts["entropy"]
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert out.loss.requires_grad
    assert not any(tensor.requires_grad for tensor in out.metrics.values())
    assert parts["entropy"] == pytest.approx(math.log(ACTIONS))  # of its constant logits
    log_ratio = -math.log(ACTIONS) - samples.log_prob_B[:10].double()
    assert parts["approx_kl"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-4)
    outside = [abs(math.exp(r) - 1) > config.clip for r in log_ratio.tolist()]
    assert parts["clip_fraction"] == pytest.approx(np.mean(outside))


def test_advantages_are_normalised_within_the_minibatch() -> None:
    """So neither their scale nor their offset matters to the policy; without it, the scale does."""
    unroll, _ = play(3)
    batch, network, index = a_batch(unroll), PixelValue(), torch.arange(12)

    def policy_loss(config: PPOConfig, scale: float, offset: float) -> float:
        samples = PPO(config).prepare(network, batch)  # type: ignore[arg-type]
        samples = replace(samples, advantage_B=scale * samples.advantage_B + offset)
        return float(PPO(config).loss(network, batch, samples, index, 0.0).metrics["policy_loss"])  # type: ignore[arg-type]

    plain = policy_loss(PPOConfig(), 1.0, 0.0)
    assert policy_loss(PPOConfig(), 30.0, 7.0) == pytest.approx(plain, rel=1e-3)
    raw = PPOConfig(normalise_advantages=False)
    assert policy_loss(raw, 30.0, 0.0) == pytest.approx(30.0 * policy_loss(raw, 1.0, 0.0), rel=1e-3)


def test_a_minibatch_of_one_sample_has_a_finite_loss() -> None:
    unroll, _ = play(3)
    batch, network = a_batch(unroll), PixelValue()
    samples = PPO(PPOConfig()).prepare(network, batch)  # type: ignore[arg-type]
    assert torch.isfinite(PPO(PPOConfig()).loss(network, batch, samples, torch.tensor([4]), 0.0).loss)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target_kl", "kl", "expected"),
    [(None, 100.0, False), (0.02, 0.0199, False), (0.02, 0.0201, True), (0.02, 0.029, True)],
)
def test_epochs_stop_once_the_kl_passes_its_target(
    target_kl: float | None, kl: float, expected: bool
) -> None:
    assert PPO(PPOConfig(target_kl=target_kl)).stop({"approx_kl": torch.tensor(kl)}) is expected


def test_diagnose() -> None:
    samples = replace(
        some_samples(4),
        value_B=torch.tensor([0.0, 1.0, 2.0, 3.0]),
        return_B=torch.tensor([1.0, 1.0, 3.0, 3.0]),
    )
    assert PPO(PPOConfig()).diagnose(samples) == {
        "explained_variance": pytest.approx(1 - (1 / 3) / (4 / 3)),
        "value_mean": 1.5,
        "return_target_mean": 2.0,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.01},
        {"gamma": -0.1},
        {"gae_lambda": 1.5},
        {"clip": 0.0},
        {"max_grad_norm": 0.0},
        {"lr": (1e-3, -1e-3)},
        {"epochs": 0},
        {"minibatch": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPOConfig(**wrong)
