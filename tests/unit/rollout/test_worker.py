"""Unrolls of the probe environment, checked by playing their actions again."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mario_dist.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.learner.batch import make_batch, stack_index
from mario_dist.nets import ActorCritic, NetworkConfig, build_network, get_weights
from mario_dist.rollout import RolloutWorker
from mario_dist.rollout import inference as inference_module
from mario_dist.types import EpisodeRecord, Unroll, Weights

K, LANES, LENGTH = 3, 4, 9
# Steps enough for episodes to end by death and by truncation, some of them on an unroll's last step.
PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(8, 10), frame_stack=K, max_steps=6, stall_steps=0
)
UNROLLS = 8


def a_network(seed: int = 0) -> ActorCritic:
    network = build_network(NetworkConfig("mlp", 16), ProbeVectorEnv(PROBE, 1, (0,)).spec, seed)
    with torch.no_grad():
        network.policy.weight.mul_(100.0)  # log-probabilities that differ
    return network


def a_worker(seed: int = 0, env_seed: int = 5, actor: int = 0, incarnation: int = 0) -> RolloutWorker:
    env = ProbeVectorEnv(PROBE, LANES, (env_seed,))
    return RolloutWorker(env, a_network(), length=LENGTH, seed=seed, actor=actor, incarnation=incarnation)


def weights_of(seed: int, version: int) -> Weights:
    return get_weights(a_network(seed), version)


def same(first: Unroll, second: Unroll) -> bool:
    """Bit for bit."""
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(Unroll))
    )


def timeless(records: tuple[EpisodeRecord, ...]) -> list[EpisodeRecord]:
    return [dataclasses.replace(r, episode=dataclasses.replace(r.episode, seconds=0.0)) for r in records]


@pytest.fixture(scope="module")
def unrolls() -> list[Unroll]:
    collecting, weights = a_worker(), weights_of(seed=1, version=0)
    return [collecting.collect(weights).unroll for _ in range(UNROLLS)]


def test_the_data_are_worth_testing_on(unrolls: list[Unroll]) -> None:
    """Both kinds of end, also on the last step of an unroll and within K steps of its start."""
    assert any(u.terminated.any() for u in unrolls)
    assert any(u.truncated.any() for u in unrolls)
    assert any(u.truncated[-1].any() for u in unrolls)
    assert any(u.terminated[-1].any() for u in unrolls)
    assert any(u.truncated[: K - 1].any() for u in unrolls)


def test_unrolls_keep_the_contract(unrolls: list[Unroll]) -> None:
    for sequence, unroll in enumerate(unrolls):
        unroll.check(K)
        assert unroll.steps == LENGTH * LANES
        assert unroll.sequence == sequence
        assert not (unroll.terminated & unroll.truncated).any()
        assert unroll.final_t.dtype == unroll.final_n.dtype == np.int64


def test_unrolls_say_what_the_environment_did(unrolls: list[Unroll]) -> None:
    """The actions, played again in an environment of the same seed, give every frame, reward and end."""
    env = ProbeVectorEnv(PROBE, LANES, (5,))
    first = env.reset().copy()
    assert np.array_equal(unrolls[0].frames[:K], np.repeat(first[None], K, axis=0))
    for unroll in unrolls:
        finals = []
        for t in range(LENGTH):
            step = env.step(unroll.action[t])
            assert np.array_equal(unroll.frames[t + K], step.frame_NHW)
            assert np.array_equal(unroll.reward[t], step.reward_N)
            assert np.array_equal(unroll.terminated[t], step.terminated_N)
            assert np.array_equal(unroll.truncated[t], step.truncated_N)
            finals += [
                (t, int(lane), step.final_frame_FHW[row].copy())
                for row, lane in enumerate(step.final_lane_F)
                if step.truncated_N[lane]
            ]
        assert [(t, n) for t, n, _ in finals] == list(
            zip(unroll.final_t.tolist(), unroll.final_n.tolist(), strict=True)
        )
        for (t, n, frame), kept in zip(finals, unroll.final_frame, strict=True):
            assert np.array_equal(frame, kept)
            assert unroll.truncated[t, n]


def test_log_probs_and_values_are_those_of_the_rebuilt_stacks(unrolls: list[Unroll]) -> None:
    network = a_network(seed=1)
    batch = make_batch(unrolls, K, torch.device("cpu"))
    with torch.no_grad():
        out = network(batch.stack(batch.stack_index_TNK.flatten(0, 1)))
    log_prob_BA = out.logits_BA.log_softmax(-1)
    log_prob_B = log_prob_BA.gather(1, batch.action_TN.reshape(-1, 1)).squeeze(1)
    torch.testing.assert_close(log_prob_B, batch.log_prob_TN.flatten(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.value_B, batch.value_TN.flatten(), rtol=1e-5, atol=1e-5)
    assert log_prob_BA.std(0).min() > 0.1  # and no stack would do for another's


def test_actions_are_drawn_from_the_policy() -> None:
    env = ProbeVectorEnv(PROBE, 2000, (0,))
    drawing = RolloutWorker(env, a_network(), length=1, seed=0)
    unroll = drawing.collect(weights_of(seed=1, version=0)).unroll
    # Importance weights average to 1 for whatever other policy, but only under the one that acted.
    other = a_network(seed=2)
    with torch.no_grad():
        batch = make_batch([unroll], K, torch.device("cpu"))
        log_prob = other(batch.stack(batch.stack_index_TNK[0])).logits_BA.log_softmax(-1)
    ratio = (log_prob.gather(1, batch.action_TN.T).squeeze(1) - batch.log_prob_TN[0]).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / 2000**0.5)
    assert float(ratio.std()) > 0.1


def test_consecutive_unrolls_overlap(unrolls: list[Unroll]) -> None:
    """The bootstrap observation of one is the first observation of the next."""
    for before, after in pairwise(unrolls):
        assert np.array_equal(before.frames[LENGTH + K - 1], after.frames[K - 1])
        rows_NK = stack_index(before.terminated | before.truncated, K)[LENGTH]
        for lane in range(LANES):
            assert np.array_equal(before.frames[rows_NK[lane], lane], after.frames[:K, lane])
        # Where the episode goes on, these are simply the last K rows.
        going_on = ~(before.terminated | before.truncated)[-(K - 1) :].any(axis=0)
        assert np.array_equal(before.frames[-K:][:, going_on], after.frames[:K][:, going_on])


def test_episodes_are_numbered_once_each() -> None:
    workers = [a_worker(actor=a, incarnation=i, env_seed=10 * a + i) for a in (0, 1) for i in (0, 1)]
    records = [
        record
        for worker in workers
        for version in range(4)
        for record in worker.collect(weights_of(1, version)).episodes
    ]
    names = [(r.actor, r.incarnation, r.sequence) for r in records]
    assert len(set(names)) == len(names) > 4
    for actor in (0, 1):
        for incarnation in (0, 1):
            numbers = [s for a, i, s in names if (a, i) == (actor, incarnation)]
            assert numbers == list(range(len(numbers)))


def test_every_ended_episode_is_recorded_with_the_weights_that_ended_it() -> None:
    worker = a_worker(actor=2, incarnation=1)
    for version in (3, 5, 9):
        result = worker.collect(weights_of(1, version))
        unroll = result.unroll
        assert (unroll.weights_version, unroll.actor, unroll.incarnation) == (version, 2, 1)
        ended = [
            (int(n), "truncated" if unroll.truncated[t, n] else "death")
            for t, n in zip(*np.nonzero(unroll.terminated | unroll.truncated), strict=True)
        ]
        assert [(r.episode.lane, r.episode.end) for r in result.episodes] == ended
        assert {r.weights_version for r in result.episodes} == {version}
        parts = {"inference", "environment", "inference_cpu", "environment_cpu"}
        assert set(result.seconds) == parts


@pytest.mark.parametrize("through_files", [False, True])
def test_a_restored_worker_goes_on_bit_for_bit(through_files: bool, tmp_path: Path) -> None:
    straight = a_worker()
    for version in range(3):
        straight.collect(weights_of(version, version))
    state = straight.state()
    if through_files:
        state = load_checkpoint(save_checkpoint(tmp_path, 1, TrainState(state, {}))).arrays
    expected = [straight.collect(weights_of(version, version)) for version in range(3, 6)]

    restored = a_worker(seed=99, env_seed=77)  # nothing of its own may matter
    restored.collect(weights_of(4, 8))
    restored.restore(state)
    for version, result in enumerate(expected, start=3):
        again = restored.collect(weights_of(version, version))
        assert same(again.unroll, result.unroll)
        assert timeless(again.episodes) == timeless(result.episodes)


def test_a_state_does_not_change_afterwards() -> None:
    worker = a_worker()
    worker.collect(weights_of(0, 0))
    state = worker.state()
    kept = {name: array.copy() for name, array in state.items()}
    worker.collect(weights_of(0, 0))
    assert all(np.array_equal(state[name], kept[name]) for name in kept)
    restored = a_worker()
    restored.restore(state)
    restored.collect(weights_of(0, 0))
    assert all(np.array_equal(state[name], kept[name]) for name in kept)


def test_the_same_seeds_give_the_same_unrolls() -> None:
    weights = weights_of(1, 0)
    first, again, other = (a_worker(seed=s).collect(weights).unroll for s in (0, 0, 1))
    assert same(first, again)
    assert not np.array_equal(first.action, other.action)


def test_unrolls_do_not_share_memory() -> None:
    worker = a_worker()
    first = worker.collect(weights_of(1, 0)).unroll
    kept = {f.name: np.copy(getattr(first, f.name)) for f in dataclasses.fields(Unroll)}
    worker.collect(weights_of(1, 0))
    assert all(np.array_equal(getattr(first, name), array) for name, array in kept.items())


def test_weights_are_set_only_when_their_version_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = inference_module.set_weights
    monkeypatch.setattr(
        inference_module, "set_weights", lambda net, arrays: calls.append(1) or original(net, arrays)
    )
    collecting = a_worker()
    for version, expected in ((0, 1), (0, 1), (1, 2), (1, 2), (5, 3), (5, 3)):
        collecting.collect(weights_of(seed=version, version=version))
        assert len(calls) == expected


def test_new_weights_act_from_the_next_step_on() -> None:
    worker = a_worker()
    worker.collect(weights_of(seed=1, version=0))
    unroll = worker.collect(weights_of(seed=2, version=1)).unroll
    batch = make_batch([unroll], K, torch.device("cpu"))
    with torch.no_grad():
        value_B = a_network(seed=2)(batch.stack(batch.stack_index_TNK.flatten(0, 1))).value_B
    torch.testing.assert_close(value_B, batch.value_TN.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("frames", lambda a: a[:-1]),
        ("frames", lambda a: a.astype(np.float32)),
        ("action", lambda a: a.astype(np.int32)),
        ("reward", lambda a: a.astype(np.float64)),
        ("terminated", lambda a: a.astype(np.uint8)),
        ("truncated", lambda a: a[1:]),
        ("log_prob", lambda a: a[:, 1:]),
        ("value", lambda a: a.astype(np.float16)),
        ("final_frame", lambda a: np.concatenate([a, a[:1]])),
    ],
)
def test_check_names_what_breaks_the_contract(unrolls: list[Unroll], field: str, broken) -> None:  # type: ignore[no-untyped-def]
    unroll = next(u for u in unrolls if len(u.final_t))
    with pytest.raises(ValueError, match=r"unroll\."):
        dataclasses.replace(unroll, **{field: broken(getattr(unroll, field))}).check(K)
