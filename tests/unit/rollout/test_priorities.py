"""Initial priorities: an actor's own n-step errors, recomputed from the unrolls that it made."""

import numpy as np
import pytest
import torch

from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.learner.batch import make_batch
from mario_dist.nets import NetworkConfig, QNetwork, build_network, get_weights
from mario_dist.replay import PrioritisedReplay
from mario_dist.rollout import EpsilonGreedy, InitialPriorities, RolloutWorker
from mario_dist.types import Unroll

K, LANES, LENGTH, GAMMA = 2, 3, 7, 0.9
PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(8, 10), frame_stack=K, max_steps=5, stall_steps=0
)


def a_network() -> QNetwork:
    network = build_network(NetworkConfig("mlp", 16), ProbeVectorEnv(PROBE, 1, (0,)).spec, 0, "dueling")
    assert isinstance(network, QNetwork)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    return network


def a_worker(n_step: int) -> RolloutWorker:
    epsilon_N = torch.full((LANES,), 0.5)
    return RolloutWorker(
        ProbeVectorEnv(PROBE, LANES, (1,)),
        a_network(),
        length=LENGTH,
        seed=0,
        policy=EpsilonGreedy(epsilon_N, epsilon_N, share=1.0),
        priorities=InitialPriorities(n_step, GAMMA),
    )


def collect(worker: RolloutWorker, count: int) -> list[Unroll]:
    weights = get_weights(a_network(), 0)
    return [worker.collect(weights).unroll for _ in range(count)]


@pytest.mark.parametrize("n_step", [1, 3])
def test_priorities_are_the_errors_of_the_steps_n_before(n_step: int) -> None:
    """Q-values and bootstraps evaluated anew from the stacks of the unrolls, step by step."""
    unrolls = collect(a_worker(n_step), 5)
    for unroll in unrolls:
        unroll.check(K)
    network = a_network()
    q, value, final = [], [], {}
    with torch.no_grad():
        for u, unroll in enumerate(unrolls):
            batch = make_batch([unroll], K, torch.device("cpu"))
            out = network(batch.stack(batch.stack_index_TNK.flatten(0, 1)))
            q.append(out.logits_BA.gather(1, batch.action_TN.reshape(-1, 1)).reshape(LENGTH, LANES))
            value.append(out.value_B.reshape(LENGTH, LANES))
            if len(batch.final_tn_F2):
                values = network(batch.stack(batch.final_index_FK)).value_B
                for (t, n), v in zip(batch.final_tn_F2.tolist(), values.tolist(), strict=True):
                    final[u * LENGTH + t, n] = v
    q_SN, value_SN = torch.cat(q).numpy(), torch.cat(value).numpy()
    joined = {
        name: np.concatenate([getattr(u, name) for u in unrolls])
        for name in ("reward", "terminated", "truncated", "priority")
    }
    assert final, "some episode must be truncated"
    assert joined["terminated"].any()
    for s in range(len(q_SN) - n_step):
        for n in range(LANES):
            total = 0.0
            for j in range(n_step):
                total += GAMMA**j * joined["reward"][s + j, n]
                if joined["terminated"][s + j, n]:
                    break
                if joined["truncated"][s + j, n]:
                    total += GAMMA ** (j + 1) * final[s + j, n]
                    break
            else:
                total += GAMMA**n_step * value_SN[s + n_step, n]
            assert joined["priority"][s + n_step, n] == pytest.approx(abs(total - q_SN[s, n]), abs=1e-4)


def test_the_first_rows_of_all_are_empty_and_a_restored_worker_goes_on() -> None:
    worker = a_worker(3)
    first = collect(worker, 1)[0]
    assert first.priority is not None
    assert not first.priority[:3].any()
    assert first.priority[3:].all()
    state = worker.state()
    expected = collect(worker, 1)[0]
    other = a_worker(3)
    other.restore(state)
    again = collect(other, 1)[0]
    assert expected.priority is not None
    assert again.priority is not None
    np.testing.assert_array_equal(again.priority, expected.priority)
    assert expected.priority.all()


def test_what_the_replay_samples_has_the_workers_priority() -> None:
    """Worker and ring agree on which step a priority is of, across unrolls."""
    n_step, unrolls = 3, collect(a_worker(3), 4)
    replay = PrioritisedReplay(
        capacity=4 * LENGTH * LANES,
        unroll_length=LENGTH,
        lanes=LANES,
        frame_shape=PROBE.frame_size,
        frame_stack=K,
        n_step=n_step,
        gamma=GAMMA,
        priority_exponent=1.0,
        seed=0,
    )
    for unroll in unrolls:
        replay.add(unroll)
    priority_SN = np.concatenate([u.priority for u in unrolls if u.priority is not None])
    batch = replay.sample(500)
    step, lane = batch.id_B // LANES, batch.id_B % LANES
    expected = priority_SN[step + n_step, lane] + 1e-6
    np.testing.assert_allclose(batch.probability_B * replay.mass, expected, rtol=1e-6)
