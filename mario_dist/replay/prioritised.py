"""One shard of a prioritised experience replay (Schaul et al. 2016), filled by unrolls.

The ring's unit is the unroll: a block of T steps of N lanes, of which it keeps the newest frame of every
observation and nothing twice. Blocks of one actor that follow each other are linked, so that stacks and
n-step returns reach over their borders. Whatever a transition needs must be there: after a gap, or once the
block before was overwritten, a block's first K - 1 steps cannot be sampled; its last n become so when the
actor's next block has come, which also brings their priorities.
"""

import json
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mario_dist.replay.frames import Compression, make_frame_store
from mario_dist.replay.sum_tree import SumTree
from mario_dist.types import F32, I64, U8, Arrays, Bool, ReplayStats, Transitions, Unroll, part

_NONE = -1
_ANY = -1
_MIN_PRIORITY = 1e-6
"""Added to every error, so that no transition is never seen again (Schaul et al. 2016, 3.3)."""


class PrioritisedReplay:
    """At most ``capacity`` transitions, rounded down to whole unrolls, the oldest overwritten first.

    A transition's chance is proportional to ``(|error| + 1e-6) ** priority_exponent``; an exponent of 0 is
    uniform sampling. A block is known by its number, counted from 0; its place in the ring is that number
    modulo ``blocks``. Raises ``ValueError`` where the capacity holds no two unrolls.
    """

    def __init__(
        self,
        *,
        capacity: int,
        unroll_length: int,
        lanes: int,
        frame_shape: tuple[int, int],
        frame_stack: int,
        n_step: int,
        gamma: float,
        priority_exponent: float,
        seed: int,
        compression: Compression = "none",
    ) -> None:
        self._t, self._n, self._k = unroll_length, lanes, frame_stack
        self._rows = unroll_length * lanes
        self._blocks = capacity // self._rows
        if self._blocks < 2:
            raise ValueError(
                f"a capacity of {capacity:,} transitions holds no two unrolls of {self._rows:,} steps each;"
                f" make it at least {2 * self._rows:,}"
            )
        if unroll_length < max(n_step, frame_stack - 1):
            raise ValueError(f"unrolls must be at least {max(n_step, frame_stack - 1)} steps long")
        self._n_step = n_step
        self._gamma = gamma
        self._exponent = priority_exponent
        self._rng = np.random.default_rng(seed)
        size = self._blocks * self._rows
        self._frames = make_frame_store(compression, self._blocks, self._rows, frame_shape)
        self._tree = SumTree(size)
        self._action: NDArray[np.uint8] = np.zeros(size, dtype=np.uint8)
        self._reward: F32 = np.zeros(size, dtype=np.float32)
        self._terminated: Bool = np.zeros(size, dtype=np.bool_)
        self._truncated: Bool = np.zeros(size, dtype=np.bool_)
        # Numbers of an actor's block before and after, by place.
        self._before: I64 = np.full(self._blocks, _NONE, dtype=np.int64)
        self._after: I64 = np.full(self._blocks, _NONE, dtype=np.int64)
        self._finals: dict[int, U8] = {}  # frame by row, of truncated steps
        self._newest: dict[int, tuple[int, int, int]] = {}  # by actor: block, incarnation, sequence
        self._oldest = self._next = 0
        self._instance = uuid.uuid4().hex
        self._frame_bytes = frame_shape[0] * frame_shape[1]
        self._kind = {
            "blocks": self._blocks,
            "unroll_length": unroll_length,
            "lanes": lanes,
            "frame_shape": list(frame_shape),
            "frame_stack": frame_stack,
            "n_step": n_step,
            "gamma": gamma,
            "priority_exponent": priority_exponent,
            "compression": compression,
        }

    def __len__(self) -> int:
        """Transitions stored; a few of them wait for their successors."""
        return (self._next - self._oldest) * self._rows

    @property
    def capacity(self) -> int:
        return self._blocks * self._rows

    @property
    def mass(self) -> float:
        return self._tree.total

    @property
    def instance(self) -> str:
        return self._instance

    def stats(self) -> ReplayStats:
        leaves = self._tree.leaves
        live = np.count_nonzero(leaves)
        return ReplayStats(
            size=len(self),
            added=self._next * self._rows,
            mass=self.mass,
            priority_mean=self.mass / live if live else 0.0,
            priority_max=float(leaves.max()),
            nbytes=self._frames.nbytes + len(self._finals) * self._frame_bytes,
            instance=self._instance,
        )

    def add(self, unroll: Unroll) -> None:
        """Take in an unroll with its initial priorities. Raises ``ValueError`` where its shape is another."""
        if unroll.action.shape != (self._t, self._n):
            raise ValueError(f"unrolls are {(self._t, self._n)}, this one is {unroll.action.shape}")
        if unroll.priority is None and self._exponent:
            raise ValueError("a prioritised replay needs unrolls with priorities")
        newest = unroll.frames[self._k - 1 : self._k - 1 + self._t]
        packed = self._frames.pack(newest.reshape(self._rows, *newest.shape[2:]))
        while self._next - self._oldest == self._blocks or not self._frames.fits(packed):
            self._drop_oldest()
        block, place = self._next, self._next % self._blocks
        start = place * self._rows
        rows = slice(start, start + self._rows)
        self._frames.put(place, packed)
        self._action[rows] = unroll.action.ravel()
        self._reward[rows] = unroll.reward.ravel()
        self._terminated[rows] = unroll.terminated.ravel()
        self._truncated[rows] = unroll.truncated.ravel()
        for t, n, frame in zip(unroll.final_t, unroll.final_n, unroll.final_frame, strict=True):
            self._finals[start + int(t) * self._n + int(n)] = frame.copy()
        self._next += 1
        before = self._link(unroll, block)
        self._set_initial_priorities(unroll, start, before)

    def sample(self, count: int) -> Transitions:
        """``count`` transitions, drawn as ``SumTree.sample`` says.

        Raises ``ValueError`` where there is none to draw.
        """
        row_B = self._tree.sample(count, self._rng)
        row_BV = self._window(row_B)
        over_BV = self._terminated[row_BV] | self._truncated[row_BV]
        k, n_step = self._k, self._n_step
        first_B = np.zeros(count, dtype=np.int64)
        for v in range(1, k):
            first_B[over_BV[:, v - 1]] = v

        steps_B = np.full(count, n_step, dtype=np.int64)
        return_B = np.zeros(count, dtype=np.float32)
        goes_on_B = np.ones(count, dtype=np.bool_)
        for j in range(n_step):
            return_B += np.float32(self._gamma**j) * self._reward[row_BV[:, k - 1 + j]] * goes_on_B
            ends_B = goes_on_B & over_BV[:, k - 1 + j]
            steps_B[ends_B] = j + 1
            goes_on_B &= ~ends_B
        each = np.arange(count)
        last_step_B = row_BV[each, k - 2 + steps_B]
        terminal_B = ~goes_on_B & self._terminated[last_step_B]
        discount_B = np.where(terminal_B, 0.0, np.power(self._gamma, steps_B)).astype(np.float32)

        # Rows that nobody looks at repeat one that is needed: no other frame is touched.
        needed_BV = np.clip(np.arange(k + n_step)[None], first_B[:, None], (k - 1 + steps_B)[:, None])
        frames_BVHW = self._frames.take(row_BV[each[:, None], needed_BV])
        for b in np.flatnonzero(~goes_on_B & ~terminal_B):
            frames_BVHW[b, k - 1 + steps_B[b] :] = self._finals[int(last_step_B[b])]
        number_B = self._number(row_B)
        return Transitions(
            frames_BVHW=frames_BVHW,
            first_B=first_B,
            steps_B=steps_B,
            action_B=self._action[row_B].astype(np.int64),
            return_B=return_B,
            discount_B=discount_B,
            probability_B=self._tree.leaves[row_B] / self._tree.total,
            age_B=(self._next - number_B) * self._rows,
            id_B=number_B * self._rows + row_B % self._rows,
            shard_B=np.zeros(count, dtype=np.int64),
        )

    def update(self, id_B: I64, error_B: F32) -> None:
        """Give these transitions new absolute errors; those that were overwritten meanwhile are left out."""
        if not self._exponent:
            return
        alive_B = (id_B >= self._oldest * self._rows) & (id_B < self._next * self._rows)
        row_B = id_B % self.capacity
        # One that lost the block before it cannot be sampled any more.
        alive_B &= self._tree.leaves[row_B] > 0.0
        self._tree.set(row_B[alive_B], self._priority(error_B[alive_B]))

    def check_valid(self) -> None:
        """Raise ``AssertionError`` unless tree, links and counts agree."""
        self._tree.check_valid()
        assert 0 <= self._next - self._oldest <= self._blocks
        living = np.zeros(self.capacity, dtype=np.bool_)
        for number in range(self._oldest, self._next):
            start = number % self._blocks * self._rows
            living[start : start + self._rows] = True
        truncated = np.flatnonzero(self._truncated & living).tolist()
        assert sorted(self._finals) == truncated, "a final frame for every truncated step that is there"
        for number in range(self._oldest, self._next):
            place = number % self._blocks
            before, after = self._before[place], self._after[place]
            assert before == _NONE or self._oldest <= before < number
            assert before == _NONE or self._after[before % self._blocks] == number
            assert after == _NONE or number < after < self._next
            leaves_TN = self._tree.leaves[place * self._rows : (place + 1) * self._rows]
            leaves_TN = leaves_TN.reshape(self._t, self._n)
            lo = self._k - 1 if before == _NONE else 0
            hi = self._t - self._n_step if after == _NONE else self._t
            assert not leaves_TN[:lo].any()
            assert not leaves_TN[hi:].any()
            assert hi <= lo or leaves_TN[lo:hi].all()

    def state(self) -> Arrays:
        """Everything, as views of the ring itself where it is large: save or copy it before going on."""
        blocks = min(self._next, self._blocks)
        rows = blocks * self._rows
        final_rows = sorted(self._finals)
        arrays: Arrays = {f"frames.{k}": v for k, v in self._frames.state(blocks).items()}
        counts = {
            "kind": self._kind,
            "oldest": self._oldest,
            "next": self._next,
            "newest": self._newest,
            "rng": self._rng.bit_generator.state,
        }
        return arrays | {
            "priority": self._tree.leaves[:rows],
            "action": self._action[:rows],
            "reward": self._reward[:rows],
            "terminated": self._terminated[:rows],
            "truncated": self._truncated[:rows],
            "before": self._before[:blocks],
            "after": self._after[:blocks],
            "final_row": np.array(final_rows, dtype=np.int64),
            "final_frame": np.array([self._finals[row] for row in final_rows], dtype=np.uint8),
            "counts": np.frombuffer(json.dumps(counts).encode(), dtype=np.uint8),
        }

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()``. Raises ``ValueError`` where it is of a replay of another kind."""
        counts = json.loads(arrays["counts"].tobytes())
        other = [name for name, value in self._kind.items() if counts["kind"].get(name) != value]
        if other:
            raise ValueError(f"it was made with another {', '.join(other)}")
        self._frames.restore(part(arrays, "frames."))
        priority = np.asarray(arrays["priority"], dtype=np.float64)
        rows, blocks = len(priority), len(arrays["before"])
        self._tree.set(np.arange(rows), priority)
        for name in ("action", "reward", "terminated", "truncated"):
            getattr(self, f"_{name}")[:rows] = arrays[name]
        self._before[:blocks], self._after[:blocks] = arrays["before"], arrays["after"]
        self._finals = {
            int(row): np.array(frame)
            for row, frame in zip(arrays["final_row"], arrays["final_frame"], strict=True)
        }
        self._oldest, self._next = int(counts["oldest"]), int(counts["next"])
        # A worker that is restored goes on with its sequence under a new incarnation.
        self._newest = {
            int(a): (block, _ANY, sequence) for a, (block, _, sequence) in counts["newest"].items()
        }
        self._rng.bit_generator.state = counts["rng"]

    def save(self, directory: Path) -> None:
        """Write ``state()`` as one .npy file for each array, straight from the ring."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, array in self.state().items():
            np.save(directory / f"{name}.npy", array, allow_pickle=False)

    def load(self, directory: Path) -> None:
        """Go on from what ``save`` wrote, read straight into the ring.

        Raises ``ValueError`` where it is of another shape, ``OSError`` where it cannot be read.
        """
        files = {path.stem: path for path in directory.glob("*.npy")}
        self.restore({k: np.load(path, mmap_mode="r", allow_pickle=False) for k, path in files.items()})

    def _link(self, unroll: Unroll, block: int) -> int:
        """Tie the new block to its actor's one before; the number of that one, or none."""
        place = block % self._blocks
        self._before[place] = self._after[place] = _NONE
        before, incarnation, sequence = self._newest.get(unroll.actor, (_NONE, 0, 0))
        self._newest[unroll.actor] = (block, unroll.incarnation, unroll.sequence)
        same_life = incarnation in (unroll.incarnation, _ANY)
        if before < self._oldest or not same_life or unroll.sequence != sequence + 1:
            return _NONE
        self._before[place] = before
        self._after[before % self._blocks] = block
        return before

    def _set_initial_priorities(self, unroll: Unroll, start: int, before: int) -> None:
        """Of the steps whose returns are complete now: all but this block's last n, and the last n before."""
        priority_TN = (
            np.ones((self._t, self._n)) if unroll.priority is None else self._priority(unroll.priority)
        )
        n_step, lanes = self._n_step, self._n
        lo = self._k - 1 if before == _NONE else 0
        own = np.arange(start + lo * lanes, start + (self._t - n_step) * lanes)
        self._tree.set(own, priority_TN[lo + n_step :].ravel())
        if before != _NONE:
            end = (before % self._blocks + 1) * self._rows
            waiting = np.arange(end - n_step * lanes, end)
            value = priority_TN[:n_step].ravel().copy()
            if self._before[before % self._blocks] == _NONE:
                # In a short block, some of its last n steps may be among the first K - 1.
                value[waiting < end - self._rows + (self._k - 1) * lanes] = 0.0
            self._tree.set(waiting, value)

    def _drop_oldest(self) -> None:
        place = self._oldest % self._blocks
        start = place * self._rows
        dead = [np.arange(start, start + self._rows)]
        after = self._after[place]
        if after != _NONE:
            self._before[after % self._blocks] = _NONE
            first = int(after % self._blocks) * self._rows
            dead.append(np.arange(first, first + (self._k - 1) * self._n))
        for rows in dead:
            self._tree.set(rows, np.zeros(len(rows)))
        for row in [row for row in self._finals if start <= row < start + self._rows]:
            del self._finals[row]
        self._frames.drop_oldest()
        self._oldest += 1
        gone = [actor for actor, (block, _, _) in self._newest.items() if block < self._oldest]
        for actor in gone:
            del self._newest[actor]

    def _priority(self, error: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.power(np.abs(error).astype(np.float64) + _MIN_PRIORITY, self._exponent)

    def _window(self, row_B: I64) -> I64:
        """The rows from K - 1 steps before to n steps after, over the borders of blocks: int64 [B, K + n].

        What lies beyond a border without a neighbour is row 0 of the same block: nobody looks at it.
        """
        place_B1, within_B = (row_B // self._rows)[:, None], row_B % self._rows
        t_BV = (within_B // self._n)[:, None] + np.arange(-(self._k - 1), self._n_step + 1)[None]
        block_BV = np.where(t_BV < 0, self._before[place_B1], self._number(row_B)[:, None])
        block_BV = np.where(t_BV >= self._t, self._after[place_B1], block_BV)
        there_BV = block_BV != _NONE
        row_BV = (
            (block_BV % self._blocks) * self._rows
            + (t_BV % self._t) * self._n
            + (within_B % self._n)[:, None]
        )
        return np.where(there_BV, row_BV, (place_B1 * self._rows))

    def _number(self, row_B: I64) -> I64:
        """The number of the living block at each row's place."""
        ahead_B = (row_B // self._rows - self._oldest) % self._blocks
        return self._oldest + ahead_B
