"""The ring against a plain list of raw steps: whatever is sampled is recomputed from the list."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario_dist.replay import PrioritisedReplay, ShardedReplay, importance_weights
from mario_dist.rollout import FrameStack
from mario_dist.types import I64, U8, Transitions, Unroll

GAMMA = 0.9
SHAPE = (2, 2)


def frame(number: int) -> U8:
    """A frame that nothing else shows: its number."""
    return np.frombuffer(number.to_bytes(4, "big"), dtype=np.uint8).reshape(SHAPE)


def numbers(stack_KHW: U8) -> list[int]:
    return [int.from_bytes(f.tobytes(), "big") for f in stack_KHW]


@dataclasses.dataclass
class Step:
    """One raw step of one lane, as an actor saw it."""

    stack: list[int]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    final: int
    priority: float
    sequence: int


class Stream:
    """An actor that plays at random: makes unrolls, and remembers every raw step of every lane."""

    _next_number = 1

    def __init__(
        self, seed: int, *, t: int, n: int, k: int, n_step: int, actor: int = 0, incarnation: int = 0,
        p_end: float = 0.15,
    ) -> None:  # fmt: skip
        self.steps: list[list[Step]] = [[] for _ in range(n)]
        self._rng = np.random.default_rng(seed)
        self._t, self._n, self._k, self._n_step = t, n, k, n_step
        self._actor, self._incarnation, self._sequence = actor, incarnation, 0
        self._p_end = p_end
        self._stack = FrameStack(k)
        self._stack.start(self._new_frames())

    def unroll(self) -> Unroll:
        t_max, n, k, rng = self._t, self._n, self._k, self._rng
        frames = np.empty((t_max + k, n, *SHAPE), dtype=np.uint8)
        frames[:k] = self._stack.frames_KNHW
        ends = rng.random((2, t_max, n)) < self._p_end
        terminated, truncated = ends[0], ends[1] & ~ends[0]
        action = rng.integers(0, 7, (t_max, n))
        reward = rng.normal(size=(t_max, n)).astype(np.float32)
        finals: list[tuple[int, int, U8]] = []
        for t in range(t_max):
            stacks = [numbers(self._stack.frames_KNHW[:, lane]) for lane in range(n)]
            final, frames[t + k] = self._new_frames(), self._new_frames()
            self._stack.push(frames[t + k], terminated[t] | truncated[t])
            for lane in range(n):
                if truncated[t, lane]:
                    finals.append((t, lane, final[lane]))
                self.steps[lane].append(
                    Step(
                        stacks[lane],
                        int(action[t, lane]),
                        float(reward[t, lane]),
                        bool(terminated[t, lane]),
                        bool(truncated[t, lane]),
                        numbers(final[lane][None])[0],
                        float(rng.uniform(0.1, 5.0)),
                        self._sequence,
                    )
                )
        made = len(self.steps[0])
        priority = np.zeros((t_max, n), dtype=np.float32)
        for t in range(t_max):
            for lane in range(n):
                of = made - t_max + t - self._n_step
                priority[t, lane] = self.steps[lane][of].priority if of >= 0 else -1.0
        unroll = Unroll(
            frames=frames,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            log_prob=np.zeros((t_max, n), dtype=np.float32),
            value=np.zeros((t_max, n), dtype=np.float32),
            final_frame=np.array([f for _, _, f in finals], dtype=np.uint8).reshape(-1, *SHAPE),
            final_t=np.array([t for t, _, _ in finals], dtype=np.int64),
            final_n=np.array([lane for _, lane, _ in finals], dtype=np.int64),
            weights_version=0,
            actor=self._actor,
            incarnation=self._incarnation,
            sequence=self._sequence,
            priority=priority,
        )
        unroll.check(k)
        self._sequence += 1
        return unroll

    def expected(self, lane: int, index: int) -> tuple[Step, float, float, list[int]]:
        """(the step, its n-step return, its discount, the stack that it bootstraps from)."""
        steps = self.steps[lane]
        total = 0.0
        for j in range(self._n_step):
            step = steps[index + j]
            total += GAMMA**j * step.reward
            if step.terminated:
                return steps[index], total, 0.0, []
            if step.truncated:
                return steps[index], total, GAMMA ** (j + 1), [*step.stack[1:], step.final]
        return steps[index], total, GAMMA**self._n_step, steps[index + self._n_step].stack

    def find(self, number: int) -> tuple[int, int] | None:
        """Where the step is whose newest frame has this number: (lane, index)."""
        for lane, steps in enumerate(self.steps):
            for index, step in enumerate(steps):
                if step.stack[-1] == number:
                    return lane, index
        return None

    def _new_frames(self) -> U8:
        start = Stream._next_number
        Stream._next_number += self._n
        return np.stack([frame(start + lane) for lane in range(self._n)])


def make(capacity: int, *, t: int, n: int, k: int, n_step: int, **changes: object) -> PrioritisedReplay:
    settings: dict[str, object] = {
        "capacity": capacity,
        "unroll_length": t,
        "lanes": n,
        "frame_shape": SHAPE,
        "frame_stack": k,
        "n_step": n_step,
        "gamma": GAMMA,
        "priority_exponent": 1.0,
        "seed": 0,
    }
    return PrioritisedReplay(**{**settings, **changes})  # type: ignore[arg-type]


def stacks(batch: Transitions, b: int, k: int) -> tuple[list[int], list[int]]:
    """The two stacks of a transition, by the contract of ``Transitions``."""
    rows = range(k)
    window, first, m = batch.frames_BVHW[b], int(batch.first_B[b]), int(batch.steps_B[b])
    return (
        numbers(window[[max(row, first) for row in rows]]),
        numbers(window[[max(m + row, first) for row in rows]]),
    )


def assert_true_to(streams: list[Stream], batch: Transitions, k: int) -> None:
    for b in range(len(batch.action_B)):
        stack, next_stack = stacks(batch, b, k)
        stream, at = next((s, at) for s in streams if (at := s.find(stack[-1])) is not None)
        step, total, discount, bootstrap = stream.expected(*at)
        assert stack == step.stack
        assert batch.action_B[b] == step.action
        assert batch.return_B[b] == pytest.approx(total, abs=1e-5)
        assert batch.discount_B[b] == pytest.approx(discount, abs=1e-6)
        if discount:
            assert next_stack == bootstrap


SIZES = st.fixed_dictionaries(
    {"k": st.integers(1, 4), "n_step": st.integers(1, 4), "t": st.integers(4, 9), "n": st.integers(1, 3)}
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=SIZES,
    seed=st.integers(0, 10**6),
    blocks=st.integers(2, 5),
    shards=st.integers(1, 3),
    actors=st.integers(1, 4),
    p_end=st.sampled_from([0.0, 0.05, 0.3, 0.7]),
    lost=st.sampled_from([0.0, 0.2]),
    compression=st.sampled_from(["none", "lz4"]),
)
def test_every_sample_is_what_a_list_of_raw_steps_says(
    sizes: dict[str, int],
    seed: int,
    blocks: int,
    shards: int,
    actors: int,
    p_end: float,
    lost: float,
    compression: str,
) -> None:
    """Over random episode lengths, wraps of the ring, lost unrolls, replaced actors and shards."""
    rng = np.random.default_rng(seed)
    capacity = blocks * sizes["t"] * sizes["n"]
    parts = [make(capacity, **sizes, seed=s, compression=compression) for s in range(shards)]
    replay = ShardedReplay(parts, seed)
    streams = [Stream(seed + a, **sizes, actor=a, p_end=p_end) for a in range(actors)]
    ended: list[Stream] = []
    for _ in range(3 * blocks):
        for a in range(actors):
            if rng.random() < lost / 4:  # the actor died: its successor counts anew
                ended.append(streams[a])
                incarnation = streams[a]._incarnation + 1
                streams[a] = Stream(
                    int(rng.integers(10**6)), **sizes, actor=a, incarnation=incarnation, p_end=p_end
                )
            unroll = streams[a].unroll()
            if rng.random() >= lost:
                replay.add(unroll)
        for part in parts:
            part.check_valid()
        if replay.stats().mass:
            assert_true_to([*streams, *ended], replay.sample(24), sizes["k"])
    assert all(len(part) <= capacity for part in parts)


def test_all_that_can_be_sampled_is_and_nothing_else() -> None:
    """Of an actor's unbroken unrolls: all steps but those whose stack or return is not whole."""
    sizes = {"t": 6, "n": 2, "k": 3, "n_step": 2}
    stream, replay = Stream(0, **sizes), make(3 * 12, **sizes)
    for _ in range(5):
        replay.add(stream.unroll())
    batch = replay.sample(6000)
    seen = {stream.find(stacks(batch, b, 3)[0][-1]) for b in range(6000)}
    # Blocks 2 to 4 are left: steps 12 to 29, the first 2 without their stacks, the last 2 without returns.
    assert seen == {(lane, index) for lane in range(2) for index in range(14, 28)}


def test_frequencies_match_priorities() -> None:
    """Chi-squared over 50 batches; the initial priorities are the streams' own."""
    sizes = {"t": 8, "n": 4, "k": 2, "n_step": 3}
    stream, replay = Stream(1, **sizes), make(4 * 32, **sizes, priority_exponent=0.6)
    for _ in range(4):
        replay.add(stream.unroll())
    draws = 100_000
    batches = [replay.sample(2_000) for _ in range(draws // 2_000)]
    count = Counter(int(i) for batch in batches for i in batch.id_B)
    by_id = {}
    for batch in batches:
        for b, i in enumerate(batch.id_B.tolist()):
            by_id.setdefault(i, (stacks(batch, b, 2)[0][-1], float(batch.probability_B[b])))
    mass = {}
    for i, (number, _) in by_id.items():
        at = stream.find(number)
        assert at is not None
        mass[i] = (stream.steps[at[0]][at[1]].priority + 1e-6) ** 0.6
    total = sum(mass.values())
    chi2 = sum((count[i] - draws * m / total) ** 2 / (draws * m / total) for i, m in mass.items())
    # Stratified draws vary less than independent ones, whose 99.9 % quantile is about d + 3.1 sqrt(2 d) + 6.
    degrees = len(mass) - 1
    assert len(mass) == 4 * 32 - 4 * 3 - 4
    assert chi2 < degrees + 3.1 * (2 * degrees) ** 0.5 + 6
    for i, (_, probability) in by_id.items():
        assert probability == pytest.approx(mass[i] / total, rel=1e-6)
    # And the test can fail: uniform sampling is far outside.
    uniform = sum((draws / len(mass) - draws * m / total) ** 2 / (draws * m / total) for m in mass.values())
    assert uniform > 10 * degrees


def test_shards_are_drawn_from_in_proportion_to_their_mass() -> None:
    sizes = {"t": 8, "n": 2, "k": 2, "n_step": 1}
    parts = [make(8 * 16, **sizes, seed=s) for s in range(3)]
    streams = [Stream(a, **sizes, actor=a) for a in range(3)]
    replay = ShardedReplay(parts, 0)
    for stream, unrolls in zip(streams, (2, 7, 0), strict=True):
        for _ in range(unrolls):
            replay.add(stream.unroll())
    mass = np.array([part.mass for part in parts])
    count = sum(np.bincount(replay.sample(100).shard_B, minlength=3) for _ in range(200))
    assert count[2] == 0
    np.testing.assert_allclose(count / 20_000, mass / mass.sum(), atol=0.003)
    batch = replay.sample(64)
    for s, i, p in zip(batch.shard_B, batch.id_B, batch.probability_B, strict=True):
        leaf = parts[s]._tree.leaves[i % parts[s].capacity]
        assert p == pytest.approx(leaf / mass.sum(), rel=1e-9)


def test_new_priorities_change_the_odds_and_old_ids_nothing() -> None:
    sizes = {"t": 6, "n": 2, "k": 2, "n_step": 2}
    stream, replay = Stream(2, **sizes), make(3 * 12, **sizes)
    for _ in range(3):
        replay.add(stream.unroll())
    batch = replay.sample(8)
    favourite = batch.id_B[:1]
    replay.update(favourite, np.array([1e6], dtype=np.float32))
    replay.check_valid()
    assert (replay.sample(500).id_B == favourite).mean() > 0.99
    for _ in range(3):  # everything is overwritten
        replay.add(stream.unroll())
    before = replay.mass
    replay.update(batch.id_B, np.full(8, 1e9, dtype=np.float32))
    assert replay.mass == before
    replay.check_valid()


def test_a_step_that_lost_the_block_before_it_stays_out() -> None:
    sizes = {"t": 6, "n": 1, "k": 4, "n_step": 1}
    stream, replay = Stream(3, **sizes, p_end=0.0), make(2 * 6, **sizes)
    replay.add(stream.unroll())
    replay.add(stream.unroll())
    batch = replay.sample(400)
    second = np.unique(batch.id_B[batch.id_B >= 6])
    assert 6 in second
    replay.add(stream.unroll())
    replay.update(second, np.full(len(second), 1e6, dtype=np.float32))
    replay.check_valid()
    assert 6 not in replay.sample(400).id_B


def test_an_exponent_of_0_is_uniform_and_needs_no_priorities() -> None:
    sizes = {"t": 5, "n": 2, "k": 2, "n_step": 1}
    stream, replay = Stream(4, **sizes), make(4 * 10, **sizes, priority_exponent=0.0)
    for _ in range(4):
        replay.add(dataclasses.replace(stream.unroll(), priority=None))
    batch = replay.sample(3600)
    replay.update(batch.id_B, np.full(3600, 100.0, dtype=np.float32))
    counts = Counter(replay.sample(3600).id_B.tolist())
    assert len(counts) == 36
    assert max(counts.values()) - min(counts.values()) <= 2
    np.testing.assert_allclose(importance_weights(batch.probability_B, 0.7), 1.0)


def test_age_counts_the_steps_that_came_since() -> None:
    sizes = {"t": 4, "n": 2, "k": 1, "n_step": 1}
    stream, replay = Stream(5, **sizes), make(4 * 8, **sizes)
    for _ in range(6):
        replay.add(stream.unroll())
    batch = replay.sample(200)
    assert set(batch.age_B.tolist()) <= {8, 16, 24, 32}
    np.testing.assert_array_equal(batch.age_B, (6 - batch.id_B // 8) * 8)


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_saved_and_loaded_it_goes_on_the_same(tmp_path: Path, compression: str) -> None:
    sizes = {"t": 6, "n": 2, "k": 3, "n_step": 2}

    def shards() -> list[PrioritisedReplay]:
        return [make(4 * 12, **sizes, seed=s, compression=compression) for s in range(2)]

    first = ShardedReplay(shards(), 7)
    streams = [Stream(a, **sizes, actor=a) for a in range(2)]
    for _ in range(6):
        for stream in streams:
            first.add(stream.unroll())
    first.sample(5)
    first.save(tmp_path / "replay")
    parts = shards()
    second = ShardedReplay(parts, 8)
    second.load(tmp_path / "replay")
    for part in parts:
        part.check_valid()
    more = [stream.unroll() for _ in range(3) for stream in streams]
    for unroll in more:
        drawn, again = first.sample(16), second.sample(16)
        for field in dataclasses.fields(Transitions):
            np.testing.assert_array_equal(getattr(drawn, field.name), getattr(again, field.name))
        errors = np.linspace(0.1, 3.0, 16, dtype=np.float32)
        first.update(drawn, errors)
        second.update(again, errors)
        first.add(unroll)
        second.add(unroll)
    assert_true_to(streams, second.sample(32), 3)


def test_a_replay_of_another_shape_is_refused(tmp_path: Path) -> None:
    sizes = {"t": 6, "n": 2, "k": 3, "n_step": 2}
    stream, replay = Stream(0, **sizes), make(4 * 12, **sizes)
    replay.add(stream.unroll())
    replay.save(tmp_path)
    with pytest.raises(ValueError, match="another blocks"):
        make(5 * 12, **sizes).load(tmp_path)
    with pytest.raises(ValueError, match=r"0 shards does not fit 2"):
        ShardedReplay([make(24, **sizes), make(24, **sizes)], 0).load(tmp_path)


def test_what_it_is_given_must_fit() -> None:
    sizes = {"t": 6, "n": 2, "k": 3, "n_step": 2}
    with pytest.raises(ValueError, match="at least 24"):
        make(23, **sizes)
    with pytest.raises(ValueError, match="at least 7 steps"):
        make(100, t=6, n=2, k=3, n_step=7)
    replay = make(100, **sizes)
    with pytest.raises(ValueError, match=r"unrolls are \(6, 2\)"):
        replay.add(Stream(0, t=6, n=3, k=3, n_step=2).unroll())
    with pytest.raises(ValueError, match="needs unrolls with priorities"):
        replay.add(dataclasses.replace(Stream(0, **sizes).unroll(), priority=None))
    with pytest.raises(ValueError, match="all priorities are 0"):
        replay.sample(1)


def test_importance_weights_are_the_papers() -> None:
    probability = np.array([0.5, 0.25, 0.05, 0.2])
    size, beta = 10, 0.4
    raw = [(1.0 / size * 1.0 / p) ** beta for p in probability]
    np.testing.assert_allclose(importance_weights(probability, beta), [w / max(raw) for w in raw], rtol=1e-6)


def test_a_full_ring_takes_no_more_memory() -> None:
    """Arrays of a full ring are the same objects, of the same sizes, after it went round again."""

    def sizes_of(replay: PrioritisedReplay) -> list[int]:
        state: dict[str, I64] = replay.state()  # type: ignore[assignment]
        return [len(state[name]) for name in ("frames.frames", "priority", "action", "before")]

    sizes = {"t": 6, "n": 2, "k": 3, "n_step": 2}
    stream, replay = Stream(0, **sizes), make(3 * 12, **sizes)
    for _ in range(3):
        replay.add(stream.unroll())
    full, nbytes = sizes_of(replay), replay.stats().nbytes
    for _ in range(20):
        replay.add(stream.unroll())
    assert sizes_of(replay) == full
    finals = int(replay.state()["truncated"].sum())
    assert replay.stats().nbytes - 4 * finals == 3 * 12 * 4
    assert nbytes >= 3 * 12 * 4
    assert len(replay) == 36
