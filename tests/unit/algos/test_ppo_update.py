"""A whole PPO update beside Stable-Baselines3's: same network, same data, same order of samples.

Its ``CnnPolicy`` without further layers is our nature torso with two heads. What it learns from is copied
into its rollout buffer; what it does with that (advantages, losses, clipping, Adam) is its own code.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as TheirPPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from mario_dist.algos.ppo import PPO, PPOConfig
from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.learner import Learner, OptimiserConfig
from mario_dist.learner.batch import make_batch
from mario_dist.nets import ActorCritic, NetworkConfig, build_network, get_weights
from mario_dist.rollout import RolloutWorker
from mario_dist.types import StepReport, Unroll

K, LANES, LENGTH, HIDDEN, SEED = 2, 4, 12, 32, 5
PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(36, 36), frame_stack=K, max_steps=5, stall_steps=0
)
SPEC = ProbeVectorEnv(PROBE, 1, (0,)).spec
CONFIG = PPOConfig(
    gamma=0.95,
    gae_lambda=0.9,
    clip=0.15,
    value_coef=0.7,
    entropy_coef=(0.02, 0.02),
    lr=(1e-3, 1e-3),
    epochs=3,
    minibatch=LENGTH * LANES,
    max_grad_norm=0.5,
)
OURS_TO_THEIRS = {
    "torso.0": "features_extractor.cnn.0",
    "torso.2": "features_extractor.cnn.2",
    "torso.4": "features_extractor.cnn.4",
    "torso.7": "features_extractor.linear.0",
    "policy": "action_net",
    "value": "value_net",
}


def a_network(seed: int) -> ActorCritic:
    network = build_network(NetworkConfig("nature", HIDDEN), SPEC, seed)
    with torch.no_grad():
        network.policy.weight.mul_(150.0)  # a policy with opinions: ratios that reach the clip
    return network


@pytest.fixture(scope="module")
def unroll() -> Unroll:
    """Made by older weights than those that learn from it, so that no ratio is 1 to begin with."""
    worker = RolloutWorker(ProbeVectorEnv(PROBE, LANES, (4,)), a_network(0), length=LENGTH, seed=0)
    behaviour = a_network(0)
    with torch.no_grad():
        for parameter in behaviour.parameters():
            parameter.mul_(1.03)
    unroll = worker.collect(get_weights(behaviour, 0)).unroll
    assert unroll.terminated.any()
    assert unroll.truncated.any()
    return unroll


class Pictures(gym.Env[np.ndarray, int]):
    """Spaces for Stable-Baselines3; it is never stepped."""

    observation_space = gym.spaces.Box(0, 255, (K, *PROBE.frame_size), np.uint8)
    action_space = gym.spaces.Discrete(SPEC.n_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros((K, *PROBE.frame_size), np.uint8), {}


def their_model(config: PPOConfig, network: ActorCritic, target_kl: float | None = None) -> TheirPPO:
    model = TheirPPO(
        "CnnPolicy",
        DummyVecEnv([Pictures] * LANES),
        learning_rate=config.lr[0],
        n_steps=LENGTH,
        batch_size=LENGTH * LANES,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        clip_range_vf=config.value_clip,
        normalize_advantage=config.normalise_advantages,
        ent_coef=config.entropy_coef[0],
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        target_kl=target_kl,
        policy_kwargs={
            "net_arch": [],
            "features_extractor_kwargs": {"features_dim": HIDDEN},
            "optimizer_kwargs": {"eps": config.adam_eps},
        },
        device="cpu",
    )
    model.batch_size = config.minibatch  # after the constructor, which warns of a last one cut short
    model.set_logger(configure(format_strings=[]))
    parameters = dict(model.policy.named_parameters())
    with torch.no_grad():
        for ours, tensor in network.named_parameters():
            layer, kind = ours.rsplit(".", 1)
            parameters.pop(f"{OURS_TO_THEIRS[layer]}.{kind}").copy_(tensor)
    assert not parameters
    return model


def fill_their_buffer(model: TheirPPO, unroll: Unroll, network: ActorCritic) -> None:
    """As its ``collect_rollouts`` does: a truncation's final value is paid as reward."""
    batch = make_batch([unroll], K, torch.device("cpu"))
    with torch.no_grad():
        final_F = network(batch.stack(batch.final_index_FK)).value_B
        bootstrap_N = network(batch.stack(batch.bootstrap_index_NK)).value_B
    reward_TN = batch.reward_TN.clone()
    t_F, n_F = batch.final_tn_F2.unbind(1)
    reward_TN[t_F, n_F] += model.gamma * final_F
    stack_TNKHW = batch.stack(batch.stack_index_TNK).numpy()
    start_N = np.ones(LANES)
    model.rollout_buffer.reset()
    for t in range(LENGTH):
        model.rollout_buffer.add(
            stack_TNKHW[t],
            unroll.action[t],
            reward_TN[t].numpy(),
            start_N,
            batch.value_TN[t],
            batch.log_prob_TN[t],
        )
        start_N = unroll.terminated[t] | unroll.truncated[t]
    model.rollout_buffer.compute_returns_and_advantage(bootstrap_N, start_N)


def our_orders(config: PPOConfig) -> Iterator[np.ndarray]:
    """The order of the samples in each epoch of our update, by the names that they have in its buffer.

    It counts samples lane by lane, where ours are counted time by time.
    """
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(config.epochs):
        t_B, n_B = np.divmod(torch.randperm(LENGTH * LANES, generator=generator).numpy(), LANES)
        yield n_B * LENGTH + t_B


def update_both(
    config: PPOConfig, unroll: Unroll, monkeypatch: pytest.MonkeyPatch, target_kl: float | None = None
) -> tuple[Learner, StepReport, TheirPPO]:
    network = a_network(0)
    theirs = their_model(config, network, target_kl)
    fill_their_buffer(theirs, unroll, network)
    learner = Learner(
        network,
        PPO(config),
        frame_stack=K,
        optimiser=OptimiserConfig(config.lr, config.adam_eps, config.max_grad_norm),
        seed=SEED,
        device="cpu",
        precision="float32",
    )
    report = learner.step([unroll], progress=0.3)
    orders = our_orders(config)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(orders))
    theirs.train()
    return learner, report, theirs


def largest_difference(learner: Learner, theirs: TheirPPO) -> float:
    parameters = theirs.policy.state_dict()

    def difference(name: str, tensor: Tensor) -> float:
        layer, kind = name.rsplit(".", 1)
        return float((tensor - parameters[f"{OURS_TO_THEIRS[layer]}.{kind}"]).abs().max())

    return max(difference(name, tensor) for name, tensor in learner.network.state_dict().items())


def moved(learner: Learner) -> float:
    start = a_network(0)
    pairs = zip(start.parameters(), learner.network.parameters(), strict=True)
    return max(float((a - b).abs().max().detach()) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_clip": 0.05},
        {"minibatch": 16},
        {"minibatch": 20, "value_clip": 0.05},  # the last minibatch of an epoch is smaller
        {"minibatch": 16, "normalise_advantages": False},
        {"minibatch": 16, "gae_lambda": 1.0, "max_grad_norm": 100.0, "adam_eps": 1e-6},
        {"minibatch": 47},  # the last minibatch is one sample, which is not normalised
    ],
    ids=str,
)
def test_an_update_equals_stable_baselines3(
    changes: dict[str, Any], unroll: Unroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **changes)
    learner, report, theirs = update_both(config, unroll, monkeypatch)
    assert moved(learner) > 1e-3
    assert largest_difference(learner, theirs) < 1e-5

    ours, logged = report.metrics, theirs.logger.name_to_value
    assert ours["policy_loss"] == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-5)
    assert ours["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-4)
    assert ours["entropy"] == pytest.approx(-logged["train/entropy_loss"], rel=1e-4)
    assert ours["clip_fraction"] == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert ours["explained_variance"] == pytest.approx(logged["train/explained_variance"], abs=1e-4)
    # Both kinds of clipping took part, so their maths was compared as well.
    assert 0.02 < ours["clip_fraction"] < 0.98
    if config.max_grad_norm < 1.0:
        assert ours["grad_norm"] > config.max_grad_norm


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 0.3},
        {"value_clip": 0.05},
        {"value_coef": 0.5},
        {"entropy_coef": (0.0, 0.0)},
        {"gamma": 0.9},
        {"gae_lambda": 1.0},
        {"max_grad_norm": 100.0},
        {"adam_eps": 1e-3},
        {"normalise_advantages": False},
        {"epochs": 2},
    ],
    ids=str,
)
def test_the_comparison_tells_every_setting(
    changes: dict[str, Any], unroll: Unroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting changed on our side alone is seen: the equality above depends on it."""
    config = replace(CONFIG, minibatch=16)
    _, _, theirs = update_both(config, unroll, monkeypatch)
    learner, _, _ = update_both(replace(config, **changes), unroll, monkeypatch)
    assert largest_difference(learner, theirs) > 1e-4


def test_a_target_kl_ends_ours_after_the_epoch_and_theirs_before_the_step(
    unroll: Unroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where we differ: theirs stops at 1.5 times the target, and without the step that showed it."""
    config = replace(CONFIG, minibatch=16, epochs=4, target_kl=1e-7)
    learner, _, theirs = update_both(config, unroll, monkeypatch, target_kl=1e-7)
    steps = {int(array) for name, array in learner.state().items() if name.endswith(".step")}
    assert steps == {3}  # one whole epoch
    assert not theirs.policy.optimizer.state  # its first minibatch was over already
    whole, _, _ = update_both(replace(config, epochs=1, target_kl=None), unroll, monkeypatch)
    for (name, ours), same in zip(
        learner.network.named_parameters(), whole.network.parameters(), strict=True
    ):
        assert torch.equal(ours, same), name
