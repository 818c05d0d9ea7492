"""Q-learning updates: reproducible, resumable, loud where they must not go on."""

import numpy as np
import pytest
import torch

from mario_dist.algos.apex import ApexConfig, ApexDQN
from mario_dist.learner import ReplayLearner
from mario_dist.learner.batch import make_replay_batch
from mario_dist.nets import NetworkConfig, QNetwork, build_network
from mario_dist.types import Arrays, EnvSpec, Transitions

SPEC = EnvSpec((8, 10), 3, ("a", "b", "c"), 4)
CONFIG = ApexConfig(lr=(1e-3, 1e-4), target_every=3)
N_STEP, B = 2, 16


def a_learner(config: ApexConfig = CONFIG) -> ReplayLearner:
    network = build_network(NetworkConfig("mlp", 16), SPEC, 0, config.head)
    assert isinstance(network, QNetwork)
    return ReplayLearner(network, ApexDQN(config), frame_stack=3, device="cpu")


def a_sample(seed: int) -> Transitions:
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, N_STEP + 1, B)
    return Transitions(
        frames_BVHW=rng.integers(0, 256, (B, 3 + N_STEP, 8, 10)).astype(np.uint8),
        first_B=rng.integers(0, 3, B),
        steps_B=steps,
        action_B=rng.integers(0, 3, B),
        return_B=rng.normal(size=B).astype(np.float32),
        discount_B=(0.9**steps * (rng.random(B) < 0.8)).astype(np.float32),
        probability_B=rng.random(B),
        age_B=np.zeros(B, dtype=np.int64),
        id_B=np.arange(B),
        shard_B=np.zeros(B, dtype=np.int64),
    )


WEIGHT = np.linspace(0.1, 1.0, B, dtype=np.float32)


def learn(learner: ReplayLearner, seeds: range) -> list[float]:
    return [float(learner.update(a_sample(s), WEIGHT, progress=s / 20).sum()) for s in seeds]


def identical(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


def test_stacks_are_rebuilt_by_the_contract_of_transitions() -> None:
    sample = a_sample(0)
    batch = make_replay_batch(sample, WEIGHT, 3, torch.device("cpu"))
    for b in range(B):
        first, m = int(sample.first_B[b]), int(sample.steps_B[b])
        for k in range(3):
            assert np.array_equal(batch.stack_BKHW[b, k], sample.frames_BVHW[b, max(k, first)])
            assert np.array_equal(batch.next_stack_BKHW[b, k], sample.frames_BVHW[b, max(m + k, first)])


def test_stopped_and_restored_it_ends_the_same() -> None:
    whole, first, second = a_learner(), a_learner(), a_learner()
    expected = learn(whole, range(8))
    assert learn(first, range(4)) == expected[:4]
    second.restore(first.state())
    assert second.version == 4
    assert learn(second, range(4, 8)) == expected[4:]
    assert identical(whole.state(), second.state())


def test_recovered_it_has_the_old_networks_as_a_new_version_and_learns_more_slowly() -> None:
    learner = a_learner()
    learn(learner, range(2))
    state = learner.state()
    learn(learner, range(2, 5))
    learner.recover(state, 0.1)
    now = learner.state()
    assert (int(now["version"]), float(now["lr_scale"])) == (6, 0.1)
    kept = [k for k in state if k not in ("version", "lr_scale")]
    assert identical({k: now[k] for k in kept}, {k: state[k] for k in kept})
    learner.report()
    learn(learner, range(1))
    assert learner.report().metrics["lr"] == pytest.approx(0.1 * 1e-3)


def test_the_target_network_follows_every_so_often() -> None:
    learner = a_learner()

    def equal() -> bool:
        state = learner.state()
        return all(
            np.array_equal(state[k], state[k.replace("network.", "target.")])
            for k in state
            if k.startswith("network.")
        )

    assert equal()
    seen = []
    for s in range(7):
        learn(learner, range(s, s + 1))
        seen.append(equal())
    assert seen == [False, False, True, False, False, True, False]


def test_a_report_is_the_mean_since_the_last() -> None:
    learner, alone = a_learner(), a_learner()
    parts = []
    for s in range(3):
        learn(alone, range(s, s + 1))
        parts.append(alone.report().metrics)
    learn(learner, range(3))
    report = learner.report()
    assert (report.version, report.samples) == (3, 3 * B)
    for name in ("loss", "q_mean", "grad_norm"):
        assert report.metrics[name] == pytest.approx(np.mean([p[name] for p in parts]), rel=1e-4)
    assert report.metrics["lr"] == pytest.approx(1e-3 + (1e-4 - 1e-3) * 0.1)
    learn(learner, range(1))
    assert learner.report().samples == B


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    learner, sample = a_learner(), a_sample(0)
    sample.return_B[0] = np.nan
    learner.update(sample, WEIGHT, 0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        learner.report()


def test_it_fits_fixed_targets() -> None:
    learner, sample = a_learner(ApexConfig(lr=(3e-3, 3e-3), target_every=10**6)), a_sample(1)
    errors = [float(learner.update(sample, np.ones(B, dtype=np.float32), 0.0).mean()) for _ in range(150)]
    assert errors[-1] < 0.2 * errors[0]
