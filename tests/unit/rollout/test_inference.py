"""Groups of lanes that take turns, and a server that looks for several workers: the policy stays the same."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.nets import ActorCritic, NetworkConfig, build_network, get_weights
from mario_dist.rollout import (
    Answer,
    Inference,
    InferenceServer,
    InitialPriorities,
    Request,
    RolloutWorker,
    SharedInference,
)
from mario_dist.types import F32, U8, Unroll, Weights

K, LANES, LENGTH = 3, 4, 9
PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(8, 10), frame_stack=K, max_steps=6, stall_steps=0
)


def a_network(seed: int = 0) -> ActorCritic:
    network = build_network(NetworkConfig("mlp", 16), ProbeVectorEnv(PROBE, 1, (0,)).spec, seed)
    assert isinstance(network, ActorCritic)
    with torch.no_grad():
        network.policy.weight.mul_(100.0)  # log-probabilities that differ
    return network


def weights_of(seed: int, version: int) -> Weights:
    return get_weights(a_network(seed), version)


class Here:
    """A server in this process."""

    def __init__(self) -> None:
        self.server = InferenceServer(a_network(), K)
        self.sent: list[tuple[int, ...]] = []

    def look(self, request: Request) -> Answer | None:
        self.sent.append(request.frames.shape)
        (answer,) = self.server.look([request])
        return answer

    def load(self, weights: Weights) -> None:
        self.server.load(weights)

    def values(self, stack_BKHW: U8) -> F32:
        return self.server.values(stack_BKHW)


def a_worker(
    network: ActorCritic | Inference, groups: Sequence[int] = (LANES,), priorities: bool = False
) -> RolloutWorker:
    return RolloutWorker(
        [ProbeVectorEnv(PROBE, n, (5, group)) for group, n in enumerate(groups)],
        network,
        length=LENGTH,
        seed=3,
        priorities=InitialPriorities(2, 0.9) if priorities else None,
    )


def assert_same(first: Unroll, second: Unroll) -> None:
    for name in ("frames", "action", "reward", "log_prob", "value", "final_frame", "final_t", "final_n"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    if first.priority is not None and second.priority is not None:
        np.testing.assert_array_equal(first.priority, second.priority)


@pytest.mark.parametrize("groups", [(LANES,), (3, 1)], ids=["one group", "two groups"])
def test_a_server_gives_the_unrolls_that_the_workers_own_network_gives(groups: tuple[int, ...]) -> None:
    here = Here()
    own = a_worker(a_network(), groups, priorities=True)
    served = a_worker(SharedInference(here, "a"), groups, priorities=True)
    for version in range(3):
        weights = weights_of(version, version)
        here.load(weights)
        first, second = own.collect(weights), served.collect(weights)
        assert_same(first.unroll, second.unroll)
        assert first.unroll.weights_version == second.unroll.weights_version == version
    assert len(first.unroll.final_t)
    whole = [shape for shape in here.sent if len(shape) == 4]
    assert len(whole) == len(groups), "a frame is sent once"


def test_a_server_that_knows_nothing_any_more_is_told_again() -> None:
    here = Here()
    own, served = a_worker(a_network()), a_worker(SharedInference(here, "a"))
    for version in (4, 5, 6):
        weights = weights_of(version, version)
        here.server = InferenceServer(a_network(9), K)  # its next life
        assert_same(own.collect(weights).unroll, served.collect(weights).unroll)


def test_one_batch_answers_every_client_with_its_own_lanes() -> None:
    server, network, rng = InferenceServer(a_network(), K), a_network(1), np.random.default_rng(0)
    frames = {name: rng.integers(0, 256, (K, n, 8, 10), dtype=np.uint8) for name, n in (("a", 2), ("b", 3))}
    requests = [Request(name, frames_KNHW, None) for name, frames_KNHW in frames.items()]
    assert server.look(requests) == [None, None], "it has no weights"
    server.load(get_weights(network, 7))
    server.load(weights_of(2, 6))  # older ones, from a client that is behind
    stranger = Request("c", frames["a"][0], np.zeros(2, dtype=np.bool_))
    first, none, second = server.look([requests[0], stranger, requests[1]])
    assert none is None
    for answer, frames_KNHW in ((first, frames["a"]), (second, frames["b"])):
        assert answer is not None
        assert answer.version == 7
        with torch.no_grad():
            out = network(torch.from_numpy(frames_KNHW.swapaxes(0, 1).copy()))
        np.testing.assert_allclose(answer.logits_NA, out.logits_BA.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer.value_N, out.value_B.numpy(), rtol=1e-5, atol=1e-5)


def test_groups_play_their_own_environments_and_their_lanes_lie_side_by_side() -> None:
    worker = a_worker(a_network(), (3, 1))
    results = [worker.collect(weights_of(1, version)) for version in range(4)]
    envs = [ProbeVectorEnv(PROBE, 3, (5, 0)), ProbeVectorEnv(PROBE, 1, (5, 1))]
    np.testing.assert_array_equal(
        results[0].unroll.frames[K - 1], np.concatenate([env.reset() for env in envs])
    )
    for result in results:
        unroll = result.unroll
        unroll.check(K)
        for t in range(LENGTH):
            steps = [
                env.step(unroll.action[t, lanes])
                for env, lanes in zip(envs, (slice(0, 3), slice(3, 4)), strict=True)
            ]
            for name in ("reward", "terminated", "truncated"):
                expected = np.concatenate([getattr(step, f"{name}_N") for step in steps])
                np.testing.assert_array_equal(getattr(unroll, name)[t], expected)
            frames = np.concatenate([step.frame_NHW for step in steps])
            np.testing.assert_array_equal(unroll.frames[t + K], frames)
        ended = np.nonzero((unroll.terminated | unroll.truncated).any(0))[0]
        assert {record.episode.lane for record in result.episodes} == set(ended.tolist())
    worker.close()


def test_groups_go_on_bit_for_bit_from_a_state() -> None:
    straight = a_worker(a_network(), (2, 2))
    straight.collect(weights_of(1, 0))
    state = straight.state()
    restored = a_worker(a_network(4), (2, 2))
    restored.restore(state)
    assert_same(straight.collect(weights_of(1, 0)).unroll, restored.collect(weights_of(1, 0)).unroll)


def test_an_error_in_a_groups_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = a_worker(a_network(), (2, 2))

    def broken(self: ProbeVectorEnv, action_N: object) -> None:
        raise RuntimeError("the emulator is on fire")

    monkeypatch.setattr(ProbeVectorEnv, "step", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        worker.collect(weights_of(1, 0))
