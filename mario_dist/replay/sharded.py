"""A replay in several shards: which shard gives how many of a batch, and what makes it one batch again."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mario_dist.replay.prioritised import PrioritisedReplay
from mario_dist.types import F32, F64, I64, ReplayStats, Transitions, Unroll


def allocate(mass_S: F64, count: int, rng: np.random.Generator) -> I64:
    """How many of ``count`` draws each shard gives, in proportion to its mass: int64 [S].

    One random point shifts evenly spaced ones over the shards' masses laid end to end, so each count is its
    expectation rounded up or down. Raises ``ValueError`` where all masses are 0.
    """
    total = mass_S.sum()
    if total <= 0.0:
        raise ValueError("all shards are empty")
    points = (np.arange(count) + rng.random()) * (total / count)
    edges = np.cumsum(mass_S)
    # Rounding may put the last point on the last edge: it belongs to the last shard that has anything.
    last = int(np.flatnonzero(mass_S)[-1])
    shard = np.minimum(np.searchsorted(edges, points, side="right"), last)
    return np.bincount(shard, minlength=len(mass_S)).astype(np.int64)


def merge(pieces: Sequence[tuple[int, float, Transitions]]) -> Transitions:
    """One batch from (shard, share of the whole mass by which it was asked, what it gave)."""
    owned = [
        replace(
            piece,
            probability_B=piece.probability_B * share,
            shard_B=np.full(len(piece.id_B), shard, dtype=np.int64),
        )
        for shard, share, piece in pieces
    ]
    if len(owned) == 1:
        return owned[0]
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in owned]) for f in fields(Transitions)}
    return Transitions(**joined)


def importance_weights(probability_B: F64, exponent: float) -> F32:
    """(N P(i))^-beta over the largest of the batch (Schaul et al. 2016, 3.4): float32 [B], at most 1.

    N, the number of transitions, cancels out.
    """
    weight_B = np.power(probability_B / probability_B.min(), -exponent)
    return weight_B.astype(np.float32)


def total_stats(stats: Sequence[ReplayStats]) -> ReplayStats:
    """Several shards' stats as one replay's."""
    live = sum(s.mass / s.priority_mean for s in stats if s.priority_mean > 0.0)
    mass = sum(s.mass for s in stats)
    return ReplayStats(
        size=sum(s.size for s in stats),
        added=sum(s.added for s in stats),
        mass=mass,
        priority_mean=mass / live if live else 0.0,
        priority_max=max(s.priority_max for s in stats),
        nbytes=sum(s.nbytes for s in stats),
        instance=",".join(s.instance for s in stats),
    )


class ShardedReplay:
    """Shards in this process. An actor's unrolls go to one shard, where they are linked."""

    def __init__(self, shards: Sequence[PrioritisedReplay], seed: int) -> None:
        self._shards = shards
        self._rng = np.random.default_rng(seed)

    def add(self, unroll: Unroll) -> None:
        self._shards[unroll.actor % len(self._shards)].add(unroll)

    def sample(self, count: int) -> Transitions:
        mass_S = np.array([shard.mass for shard in self._shards])
        count_S = allocate(mass_S, count, self._rng)
        share_S = mass_S / mass_S.sum()
        return merge(
            [
                (s, float(share_S[s]), self._shards[s].sample(int(count_S[s])))
                for s in np.flatnonzero(count_S).tolist()
            ]
        )

    def update(self, batch: Transitions, error_B: F32) -> None:
        for s, shard in enumerate(self._shards):
            mine_B = batch.shard_B == s
            shard.update(batch.id_B[mine_B], error_B[mine_B])

    def stats(self) -> ReplayStats:
        return total_stats([shard.stats() for shard in self._shards])

    def losses(self) -> dict[str, float]:
        """Shards in this process die with it."""
        return {}

    def save(self, directory: Path) -> None:
        """Each shard in a folder of its own."""
        for s, shard in enumerate(self._shards):
            shard.save(directory / f"shard-{s}")
        (directory / "rng.json").write_text(json.dumps(self._rng.bit_generator.state))

    def load(self, directory: Path) -> None:
        """Raises ``ValueError`` where it was saved by other shards."""
        saved = len(list(directory.glob("shard-*")))
        if saved != len(self._shards):
            raise ValueError(f"a replay of {saved} shards does not fit {len(self._shards)}")
        for s, shard in enumerate(self._shards):
            shard.load(directory / f"shard-{s}")
        self._rng.bit_generator.state = json.loads((directory / "rng.json").read_text())
