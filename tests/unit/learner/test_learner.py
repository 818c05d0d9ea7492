"""PPO on unrolls of the probe environment: reproducible, resumable, loud where it must not go on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mario_dist.algos.api import Algorithm, LossOut
from mario_dist.algos.ppo import PPO, PPOConfig
from mario_dist.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.learner import Learner, OptimiserConfig, network_arrays
from mario_dist.nets import ActorCritic, NetworkConfig, build_network
from mario_dist.rollout import RolloutWorker
from mario_dist.types import Arrays, StepReport, Unroll, Weights

K = 2
PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(20, 20), frame_stack=K, max_steps=6, stall_steps=0
)
CONFIG = PPOConfig(epochs=2, minibatch=20, value_clip=0.3)


def a_network(seed: int = 0, torso: str = "small", hidden: int = 16) -> ActorCritic:
    spec = ProbeVectorEnv(PROBE, 1, (0,)).spec
    return build_network(NetworkConfig(torso, hidden), spec, seed)  # type: ignore[arg-type]


def a_learner(
    config: PPOConfig = CONFIG,
    network: ActorCritic | None = None,
    algorithm: Algorithm[Any] | None = None,
    **changes: Any,
) -> Learner:
    settings: dict[str, Any] = {"frame_stack": K, "seed": 3, "device": "cpu"}
    optimiser = OptimiserConfig((1e-3, 1e-3), config.adam_eps, config.max_grad_norm)
    names = [f.name for f in dataclasses.fields(optimiser)]
    optimiser = dataclasses.replace(optimiser, **{n: changes.pop(n) for n in names if n in changes})
    return Learner(
        network or a_network(),
        algorithm or PPO(config),
        optimiser=optimiser,
        **{**settings, **changes},
    )


@pytest.fixture(scope="module")
def batches() -> list[list[Unroll]]:
    """Four batches of two actors' unrolls."""
    workers = [
        RolloutWorker(ProbeVectorEnv(PROBE, 3, (actor,)), a_network(), length=8, seed=actor, actor=actor)
        for actor in range(2)
    ]
    weights = Weights(0, a_learner().weights().arrays)
    return [[worker.collect(weights).unroll for worker in workers] for _ in range(4)]


def learn(learner: Learner, batches: Sequence[Sequence[Unroll]], start: int = 0) -> list[StepReport]:
    return [learner.step(batch, progress=(start + i) / 10) for i, batch in enumerate(batches)]


def identical(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) and first[name].dtype == second[name].dtype
        for name in first
    )


def test_the_same_inputs_give_the_same_weights(batches: list[list[Unroll]]) -> None:
    first, again = a_learner(), a_learner()
    torch.manual_seed(0)
    reports = learn(first, batches)
    torch.manual_seed(1)
    assert learn(again, batches) == reports
    assert identical(first.state(), again.state())
    other = a_learner(seed=4)  # another order of the samples
    learn(other, batches)
    assert not identical(first.weights().arrays, other.weights().arrays)


def test_a_step_reports_what_it_did(batches: list[list[Unroll]]) -> None:
    learner = a_learner()
    before = learner.weights()
    reports = learn(learner, batches)
    assert before.version == 0
    assert [report.version for report in reports] == [1, 2, 3, 4]
    assert learner.weights().version == learner.version == 4
    assert {report.samples for report in reports} == {2 * 3 * 8}
    assert not identical(before.arrays, learner.weights().arrays)
    expected = {"loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm"}
    expected |= {
        "lr",
        "policy_lag",
        "policy_lag_mean",
        "explained_variance",
        "value_mean",
        "return_target_mean",
    }
    for report in reports:
        assert set(report.metrics) == expected
        assert all(isinstance(v, float) and math.isfinite(v) for v in report.metrics.values())
        assert 0.0 < report.metrics["entropy"] <= math.log(5) + 1e-6


def test_metrics_are_means_over_the_gradient_steps(batches: list[list[Unroll]]) -> None:
    seen: list[LossOut] = []

    class Recording(PPO):
        def loss(self, *arguments: Any) -> LossOut:
            seen.append(out := super().loss(*arguments))
            return out

    metrics = learn(a_learner(algorithm=Recording(CONFIG)), batches[:1])[0].metrics
    assert len(seen) == 2 * 3  # epochs, and 48 samples in minibatches of 20
    for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"):
        assert metrics[name] == pytest.approx(np.mean([float(out.metrics[name]) for out in seen]), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean([float(out.loss.detach()) for out in seen]), rel=1e-5)


@pytest.mark.parametrize("through_files", [False, True])
def test_a_restored_learner_goes_on_bit_for_bit(
    batches: list[list[Unroll]], through_files: bool, tmp_path: Path
) -> None:
    straight = a_learner()
    learn(straight, batches[:2])
    state = straight.state()
    if through_files:
        state = load_checkpoint(save_checkpoint(tmp_path, 1, TrainState(state, {}))).arrays
    expected = learn(straight, batches[2:], start=2)

    restored = a_learner(network=a_network(seed=9), seed=8)
    learn(restored, batches[3:])  # nothing of its own past may matter
    restored.restore(state)
    assert identical(restored.state(), state)
    assert learn(restored, batches[2:], start=2) == expected
    assert identical(restored.state(), straight.state())


def test_a_recovered_learner_has_the_old_weights_as_a_new_version_and_learns_more_slowly(
    batches: list[list[Unroll]],
) -> None:
    learner = a_learner()
    learn(learner, batches[:1])
    state = learner.state()
    learn(learner, batches[1:3])
    learner.recover(state, 0.1)
    learner.recover(state, 0.5)
    assert learner.version == 5
    assert identical(learner.weights().arrays, network_arrays(state))
    moments = {name: array for name, array in state.items() if name.startswith("optimiser.")}
    assert identical({name: learner.state()[name] for name in moments}, moments)
    (report,) = learn(learner, batches[3:])
    assert report.metrics["lr"] == pytest.approx(0.05 * 1e-3)
    resumed = a_learner()
    resumed.restore(learner.state())
    assert learn(resumed, batches[3:])[0].metrics["lr"] == pytest.approx(0.05 * 1e-3)


def test_a_learner_restored_to_its_beginning_forgets_its_moments(batches: list[list[Unroll]]) -> None:
    fresh, used = a_learner(), a_learner()
    state = fresh.state()
    learn(used, batches)
    used.restore(state)
    learn(fresh, batches[:2])
    learn(used, batches[:2])
    assert identical(fresh.state(), used.state())


def test_a_state_is_a_copy(batches: list[list[Unroll]]) -> None:
    learner = a_learner()
    learn(learner, batches[:1])
    state, weights = learner.state(), learner.weights()
    kept = {name: array.copy() for name, array in state.items()}
    learn(learner, batches[1:])
    assert identical(state, kept)
    assert identical(weights.arrays, network_arrays(kept))
    learner.restore(state)
    learn(learner, batches)
    assert identical(state, kept)


def test_network_arrays_are_the_weights(batches: list[list[Unroll]]) -> None:
    learner = a_learner()
    learn(learner, batches[:1])
    assert identical(network_arrays(learner.state()), learner.weights().arrays)


@pytest.mark.parametrize("other", [{"torso": "mlp"}, {"hidden": 17}])
def test_the_state_of_another_network_is_refused(other: dict[str, Any]) -> None:
    learner = a_learner()
    before = learner.state()
    with pytest.raises(ValueError, match="another network"):
        learner.restore(a_learner(network=a_network(**other)).state())
    assert identical(before, learner.state())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_learner(batches: list[list[Unroll]], poison: float) -> None:
    unroll = batches[0][0]
    reward = unroll.reward.copy()
    reward[3, 1] = poison
    with pytest.raises(FloatingPointError, match="not finite at version 1"):
        a_learner().step([dataclasses.replace(unroll, reward=reward)], 0.0)


def test_a_network_that_is_not_finite_stops_the_learner(batches: list[list[Unroll]]) -> None:
    network = a_network()
    with torch.no_grad():
        network.value.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        a_learner(network=network).step(batches[0], 0.0)


def test_the_learning_rate_follows_its_schedule(batches: list[list[Unroll]]) -> None:
    learner = a_learner(lr=(1e-3, 0.0))
    for progress, expected in ((0.0, 1e-3), (0.25, 7.5e-4), (0.9, 1e-4)):
        before = learner.weights().arrays
        assert learner.step(batches[0], progress).metrics["lr"] == pytest.approx(expected)
        assert not identical(before, learner.weights().arrays)
    before = learner.weights().arrays
    for progress in (1.0, 1.5):
        assert learner.step(batches[0], progress).metrics["lr"] == 0.0
    assert identical(before, learner.weights().arrays)  # a rate of 0 moves nothing: it is really used


def test_the_entropy_bonus_follows_its_schedule(batches: list[list[Unroll]]) -> None:
    """At the end of (0, 1) the loss is lower by the whole entropy."""
    config = dataclasses.replace(CONFIG, entropy_coef=(0.0, 1.0))
    start, end = (a_learner(config, lr=(0.0, 0.0)).step(batches[0], p).metrics for p in (0.0, 1.0))
    assert start["loss"] - end["loss"] == pytest.approx(start["entropy"], rel=1e-4)


def test_policy_lag_is_that_of_the_oldest_weights(batches: list[list[Unroll]]) -> None:
    learner = a_learner()

    def lag(*versions: int) -> float:
        made_with = zip(batches[0], versions, strict=True)
        unrolls = [dataclasses.replace(unroll, weights_version=version) for unroll, version in made_with]
        return learner.step(unrolls, 0.0).metrics["policy_lag"]

    assert lag(0, 0) == 0.0  # the weights at version 0 learn from what version 0 did
    assert lag(1, 1) == 0.0
    assert lag(2, 1) == 1.0
    assert lag(0, 3) == 3.0


def test_gradients_are_clipped(batches: list[list[Unroll]], monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    learner = a_learner(max_grad_norm=0.01)
    apply = learner._optimiser.step

    def measured() -> None:
        grads = [p.grad.flatten() for p in learner.network.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))
        apply()

    monkeypatch.setattr(learner._optimiser, "step", measured)
    report = learner.step(batches[0], 0.0)
    assert norms == pytest.approx([0.01] * 6, rel=1e-3)
    assert report.metrics["grad_norm"] > 0.1  # it tells the norm before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_learn_on_the_cpu(batches: list[list[Unroll]], precision: str) -> None:
    learner = a_learner(precision=precision)
    learn(learner, batches)
    for array in learner.weights().arrays.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_precision_is_used(batches: list[list[Unroll]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # a CPU that has nothing
    weights = {}
    for precision in ("auto", "float32", "bfloat16"):
        learner = a_learner(precision=precision)
        learn(learner, batches[:2])
        weights[precision] = learner.weights().arrays
    assert identical(weights["auto"], weights["float32"])
    assert not identical(weights["bfloat16"], weights["float32"])
    for name, array in weights["float32"].items():  # less exact, not other
        np.testing.assert_allclose(weights["bfloat16"][name], array, atol=2e-2)


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no cuda device"):
        a_learner(device="cuda")


def test_threads_are_set_where_asked_for(batches: list[list[Unroll]]) -> None:
    before = torch.get_num_threads()
    try:
        for asked, expected in ((2, 2), (0, 2), (1, 1)):
            a_learner(threads=asked).step(batches[0], 0.0)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("stop_at", "expected"), [(1, 3), (2, 3), (3, 3), (4, 6), (6, 6), (7, 9), (99, 15)])
def test_a_stop_ends_the_batch_after_its_epoch(
    batches: list[list[Unroll]], stop_at: int, expected: int
) -> None:
    asked: list[Mapping[str, torch.Tensor]] = []

    class StopsAtAStep(PPO):
        def stop(self, metrics: Mapping[str, torch.Tensor]) -> bool:
            asked.append(metrics)
            return len(asked) == stop_at

    config = dataclasses.replace(CONFIG, epochs=5)
    learner = a_learner(algorithm=StopsAtAStep(config))
    learner.step(batches[0], 0.0)
    # Adam's own count of the gradient steps: three an epoch.
    assert {int(array) for name, array in learner.state().items() if name.endswith(".step")} == {expected}


def test_a_learner_learns() -> None:
    """The value of a constant reward: nothing but the value loss has anything to say."""
    worker = RolloutWorker(ProbeVectorEnv(PROBE, 4, (0,)), a_network(), length=8, seed=0)
    unroll = worker.collect(a_learner().weights()).unroll
    unroll = dataclasses.replace(
        unroll, reward=np.ones_like(unroll.reward), terminated=np.ones_like(unroll.terminated)
    )
    learner = a_learner(dataclasses.replace(CONFIG, value_clip=None), max_grad_norm=10.0, lr=(3e-3, 3e-3))
    losses = [learner.step([unroll], 0.0).metrics["value_loss"] for _ in range(15)]
    assert losses[-1] < 0.05 * losses[0]


def test_the_optimiser_is_adam_with_the_configured_epsilon(batches: list[list[Unroll]]) -> None:
    learner = a_learner(eps=0.5)
    assert isinstance(learner._optimiser, torch.optim.Adam)
    assert [group["eps"] for group in learner._optimiser.param_groups] == [0.5]
    covered = {p for group in learner._optimiser.param_groups for p in group["params"]}
    assert covered == set(learner.network.parameters())
    assert isinstance(learner.network, nn.Module)
