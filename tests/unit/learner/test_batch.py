"""Stacks rebuilt by index, against those that a policy saw step by step."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mario_dist.learner.batch import make_batch, stack_index
from mario_dist.rollout import FrameStack
from mario_dist.types import U8, Unroll

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Seen:
    """An unroll, and what its policy saw: at each step, after the last one, and at truncated ends."""

    unroll: Unroll
    stack_TNKHW: U8
    bootstrap_NKHW: U8
    final_FKHW: U8


class Lanes:
    """Lanes of noise with random ends, a frame stack on them, and nothing of the learner's."""

    def __init__(self, rng: np.random.Generator, n: int, frame_stack: int, ends: float, actor: int) -> None:
        self._rng, self._n, self._k, self._ends, self._actor = rng, n, frame_stack, ends, actor
        self._stack = FrameStack(frame_stack)
        self._stack.start(self._frames())

    def _frames(self) -> U8:
        return self._rng.integers(0, 256, size=(self._n, 3, 2), dtype=np.uint8)

    def play(self, t_max: int, version: int = 0) -> Seen:
        rng, n, k = self._rng, self._n, self._k
        frames, stacks, finals = [*self._stack.frames_KNHW.copy()], [], []
        terminated, truncated = np.zeros((2, t_max, n), dtype=np.bool_)
        for t in range(t_max):
            stacks.append(self._stack.stack_NKHW().copy())
            terminated[t] = rng.random(n) < self._ends
            truncated[t] = ~terminated[t] & (rng.random(n) < self._ends)
            for lane in np.flatnonzero(truncated[t]):
                last = self._frames()[0]
                finals.append((t, int(lane), last, np.stack([*stacks[-1][lane, 1:], last])))
            newest = self._frames()
            frames.append(newest)
            self._stack.push(newest, terminated[t] | truncated[t])

        def noise(dtype: type) -> np.ndarray:
            return rng.integers(0, 100, size=(t_max, n)).astype(dtype)

        unroll = Unroll(
            frames=np.array(frames),
            action=noise(np.int64),
            reward=noise(np.float32),
            terminated=terminated,
            truncated=truncated,
            log_prob=noise(np.float32),
            value=noise(np.float32),
            final_frame=np.array([f for _, _, f, _ in finals], dtype=np.uint8).reshape(-1, 3, 2),
            final_t=np.array([t for t, *_ in finals], dtype=np.int64),
            final_n=np.array([n for _, n, *_ in finals], dtype=np.int64),
            weights_version=version,
            actor=self._actor,
            incarnation=0,
            sequence=0,
        )
        unroll.check(k)
        final_FKHW = np.array([s for *_, s in finals], dtype=np.uint8).reshape(-1, k, 3, 2)
        return Seen(unroll, np.array(stacks), self._stack.stack_NKHW().copy(), final_FKHW)


@pytest.mark.parametrize("frame_stack", [1, 2, 4])
@pytest.mark.parametrize("ends", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_holds_the_stacks_that_the_policies_saw(frame_stack: int, ends: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    actors = [Lanes(rng, n, frame_stack, ends, actor) for actor, n in enumerate((3, 1, 2))]
    for round_ in range(3):  # later unrolls begin within an episode, some with an end in their first rows
        seen = [actor.play(7, version=round_) for actor in actors]
        batch = make_batch([s.unroll for s in seen], frame_stack, CPU)

        stack_TNKHW = np.concatenate([s.stack_TNKHW for s in seen], axis=1)
        assert np.array_equal(batch.stack(batch.stack_index_TNK).numpy(), stack_TNKHW)
        bootstrap_NKHW = np.concatenate([s.bootstrap_NKHW for s in seen])
        assert np.array_equal(batch.stack(batch.bootstrap_index_NK).numpy(), bootstrap_NKHW)
        final_FKHW = np.concatenate([s.final_FKHW for s in seen])
        assert np.array_equal(batch.stack(batch.final_index_FK).numpy(), final_FKHW)


def test_finals_point_at_truncated_steps_in_the_lanes_of_the_batch() -> None:
    rng = np.random.default_rng(0)
    seen = [Lanes(rng, n, 3, 0.3, actor).play(6) for actor, n in enumerate((2, 4, 1))]
    batch = make_batch([s.unroll for s in seen], 3, CPU)
    rows = [(int(t), int(n)) for t, n in batch.final_tn_F2]
    assert sorted(rows) == [(int(t), int(n)) for t, n in np.argwhere(batch.truncated_TN.numpy())]
    assert len({n for _, n in rows} - {0, 1}) > 0  # also beyond the first unroll's lanes


def test_all_else_lies_side_by_side() -> None:
    rng = np.random.default_rng(1)
    unrolls = [Lanes(rng, n, 2, 0.2, n).play(5, version=10 * n).unroll for n in (2, 3)]
    batch = make_batch(unrolls, 2, CPU)
    for name in ("action", "reward", "terminated", "truncated", "log_prob", "value"):
        joined = getattr(batch, f"{name}_TN")
        assert np.array_equal(joined[:, :2].numpy(), getattr(unrolls[0], name))
        assert np.array_equal(joined[:, 2:].numpy(), getattr(unrolls[1], name))
    assert batch.weights_versions == (20, 30)
    assert batch.steps == 25
    frames = sum(u.frames.shape[0] * u.frames.shape[1] + len(u.final_t) for u in unrolls)
    assert batch.frames_RHW.shape == (frames, 3, 2)  # each frame once
    assert batch.frames_RHW.dtype == torch.uint8


def test_a_batch_without_truncations_has_empty_finals() -> None:
    batch = make_batch([Lanes(np.random.default_rng(0), 2, 4, 0.0, 0).play(3).unroll], 4, CPU)
    assert batch.final_tn_F2.shape == (0, 2)
    assert batch.final_index_FK.shape == (0, 4)
    assert batch.stack(batch.final_index_FK).shape == (0, 4, 3, 2)


def test_a_batch_is_a_copy() -> None:
    """Unrolls may lie in shared memory, which is read-only and goes away."""
    seen = Lanes(np.random.default_rng(0), 2, 2, 0.2, 0).play(4)
    batch = make_batch([seen.unroll], 2, CPU)
    for array in (seen.unroll.frames, seen.unroll.action, seen.unroll.reward):
        array[:] = 0
    assert np.array_equal(batch.stack(batch.stack_index_TNK).numpy(), seen.stack_TNKHW)
    assert batch.action_TN.any()


def test_read_only_unrolls() -> None:
    unroll = Lanes(np.random.default_rng(0), 2, 2, 0.2, 0).play(4).unroll
    for value in (getattr(unroll, name) for name in Unroll.__slots__):
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    make_batch([unroll, replace(unroll, actor=1)], 2, CPU)
    make_batch([unroll], 2, CPU)


def test_unrolls_of_unequal_length_are_refused() -> None:
    lanes = Lanes(np.random.default_rng(0), 2, 2, 0.0, 0)
    with pytest.raises(ValueError, match="dimension"):
        make_batch([lanes.play(4).unroll, lanes.play(5).unroll], 2, CPU)


def test_stack_index_by_hand() -> None:
    """Four steps, K = 3, an end at step 1: observation 2 begins with row 4, thrice."""
    end_TN = np.array([[False], [True], [False], [False]])
    assert stack_index(end_TN, 3)[:, 0].tolist() == [
        [0, 1, 2],
        [1, 2, 3],
        [4, 4, 4],
        [4, 4, 5],
        [4, 5, 6],
    ]


def test_stack_index_of_an_end_at_the_last_step() -> None:
    assert stack_index(np.array([[True]]), 2)[:, 0].tolist() == [[0, 1], [2, 2]]
