"""The Q-learning loss against a slow one written from the papers."""

from typing import Any

import numpy as np
import pytest
import torch

from mario_dist.algos.apex import ApexConfig, ApexDQN, ReplayBatch
from mario_dist.nets import NetworkConfig, QNetwork, build_network
from mario_dist.types import EnvSpec

SPEC = EnvSpec((8, 10), 2, ("a", "b", "c", "d"), 4)
B = 12


def a_network(seed: int, dueling: bool = True) -> QNetwork:
    network = build_network(NetworkConfig("mlp", 16), SPEC, seed, "dueling" if dueling else "q")
    assert isinstance(network, QNetwork)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # Q-values that differ
    return network


def a_batch(seed: int = 0) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)

    def stacks() -> torch.Tensor:
        return torch.randint(0, 256, (B, 2, 8, 10), dtype=torch.uint8, generator=generator)

    return ReplayBatch(
        stack_BKHW=stacks(),
        next_stack_BKHW=stacks(),
        action_B=torch.randint(4, (B,), generator=generator),
        return_B=torch.randn(B, generator=generator),
        discount_B=torch.tensor([0.0, 0.9, 0.81] * (B // 3)),
        weight_B=torch.rand(B, generator=generator),
    )


def q_values(network: QNetwork, stacks: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        q: np.ndarray[Any, np.dtype[np.float32]] = network(stacks).logits_BA.numpy()
    return q


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("delta", [0.3, 1.0])
def test_the_loss_is_the_papers(double: bool, delta: float) -> None:
    online, target, batch = a_network(1), a_network(2), a_batch()
    out = ApexDQN(ApexConfig(double=double, huber_delta=delta)).loss(online, target, batch)
    q, next_online = q_values(online, batch.stack_BKHW), q_values(online, batch.next_stack_BKHW)
    next_target = q_values(target, batch.next_stack_BKHW)
    losses, errors = [], []
    for b in range(B):
        chosen = max(range(4), key=lambda a: (next_online if double else next_target)[b][a])
        y = float(batch.return_B[b]) + float(batch.discount_B[b]) * next_target[b][chosen]
        error = y - q[b][int(batch.action_B[b])]
        small = abs(error) <= delta
        losses.append(0.5 * error**2 if small else delta * (abs(error) - 0.5 * delta))
        errors.append(error)
    weight = batch.weight_B.numpy()
    assert float(out.loss.detach()) == pytest.approx(float(np.mean(weight * losses)), rel=1e-5)
    np.testing.assert_allclose(out.error_B.numpy(), errors, rtol=1e-4, atol=1e-5)
    assert float(out.metrics["q_mean"]) == pytest.approx(float(q.mean()), rel=1e-4)
    # Double and plain differ on this batch: the test can tell them apart.
    assert (next_online.argmax(1) != next_target.argmax(1)).any()


def test_only_the_online_network_learns_and_only_from_the_taken_action() -> None:
    online, target, batch = a_network(1, dueling=False), a_network(2, dueling=False), a_batch()
    ApexDQN(ApexConfig(dueling=False)).loss(online, target, batch).loss.backward()
    assert all(p.grad is None for p in target.parameters())
    bias = next(p for name, p in online.named_parameters() if name == "advantage.bias")
    assert bias.grad is not None
    taken = torch.bincount(batch.action_B, minlength=4) > 0
    assert torch.equal(bias.grad != 0, taken)


def test_a_terminal_transition_ignores_what_comes_after() -> None:
    online, target, batch = a_network(1), a_network(2), a_batch()
    first = ApexDQN(ApexConfig()).loss(online, target, batch).error_B
    batch.next_stack_BKHW[0::3] = 255 - batch.next_stack_BKHW[0::3]
    again = ApexDQN(ApexConfig()).loss(online, target, batch).error_B
    assert torch.equal(first, again)
    batch.next_stack_BKHW[1::3] = 255 - batch.next_stack_BKHW[1::3]
    assert not torch.equal(again, ApexDQN(ApexConfig()).loss(online, target, batch).error_B)


@pytest.mark.parametrize(
    "bad",
    [
        {"gamma": 1.1},
        {"priority_exponent": -0.1},
        {"importance_exponent": (0.4, 1.1)},
        {"epsilon_ladder": (0.0, 7.0)},
        {"epsilon": (1.2, 0.1)},
        {"epsilon_share": 0.0},
        {"n_step": 0},
        {"batch": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ApexConfig(**bad)
