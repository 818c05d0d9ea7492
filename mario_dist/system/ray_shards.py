"""Replay shards as Ray actors, seen by the conductor that fills them and by the learner that draws from them.

Unrolls go from rollout actor to shard and batches from shard to learner; this process passes references.
Ray restarts a shard that died, empty, behind the same handle.
"""

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from mario_dist.config import RunConfig
from mario_dist.replay import allocate, merge, total_stats
from mario_dist.system.build import make_shard
from mario_dist.system.plan import Plan, shard_bytes
from mario_dist.system.ports import Collected
from mario_dist.system.ray import Ref, beside_learner, get, is_there
from mario_dist.types import F32, I64, ReplayStats, Transitions, Unroll

_ADDS = 2
"""Unrolls on their way to a shard, at most."""

_PIECE_BYTES = 2**26
"""Of a replay's file, at once from node to node."""

_PATIENCE_S = 1.0
_ASK_EVERY_S = 0.02

_EMPTY = ReplayStats(0, 0, 0.0, 0.0, 0.0, 0, "")


class ShardActor:
    """A thin shell around ``PrioritisedReplay``."""

    def __init__(self, config: RunConfig, plan: Plan, shard: int) -> None:
        self._replay = make_shard(config, lanes=plan.lanes, shard=shard, shards=plan.shards)
        self._copy: Path | None = None

    def add(self, unroll: Unroll) -> None:
        self._replay.add(unroll)

    def sample(self, count: int) -> tuple[Transitions | None, ReplayStats]:
        """None where there is nothing: this shard may have been restarted since it was last heard of."""
        return self._replay.sample(count) if self._replay.mass else None, self._replay.stats()

    def update(self, id_B: I64, error_B: F32) -> None:
        self._replay.update(id_B, error_B)

    def stats(self) -> ReplayStats:
        return self._replay.stats()

    def node(self) -> str:
        """The id of the node that it runs on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def save(self, directory: Path) -> None:
        self._replay.save(directory)

    def load(self, directory: Path) -> None:
        self._replay.load(directory)

    # The same for a directory of another node's: its files pass through one of this node's, piece by piece.

    def begin_copy(self) -> None:
        self.end_copy()
        self._copy = Path(tempfile.mkdtemp(prefix="mario-dist-replay-"))

    def save_copy(self) -> list[tuple[str, int]]:
        """The files' names and bytes."""
        self._replay.save(self._folder())
        return sorted((path.name, path.stat().st_size) for path in self._folder().iterdir())

    def read_copy(self, name: str, start: int, count: int) -> bytes:
        with (self._folder() / name).open("rb") as file:
            file.seek(start)
            return file.read(count)

    def append_copy(self, name: str, content: bytes) -> None:
        with (self._folder() / name).open("ab") as file:
            file.write(content)

    def load_copy(self) -> None:
        self._replay.load(self._folder())

    def end_copy(self) -> None:
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)
            self._copy = None

    def _folder(self) -> Path:
        """Raises ``FileNotFoundError`` where this shard died since ``begin_copy``, and is another."""
        if self._copy is None:
            raise FileNotFoundError("the shard was restarted meanwhile")
        return self._copy


@dataclass(frozen=True, slots=True)
class _Asked:
    """A batch that is under way: what was asked of each shard, by which share of the whole mass."""

    pieces: tuple[tuple[int, float, Ref], ...]


class RayReplay:
    """The shards as the learner's ``SampleSource``: batches asked for ahead, priorities written back.

    A shard's mass is known from its last answer; one that is empty or died is asked how it is until it has
    something again, while the others give the batches.
    """

    def __init__(self, shards: Sequence[Any], batch: int, prefetch: int, seed: int) -> None:
        self._shards = shards
        self._batch = batch
        self._prefetch = prefetch
        self._rng = np.random.default_rng(seed)
        self._known: list[ReplayStats] = [_EMPTY] * len(shards)
        self._asking: dict[int, Ref] = {}
        self._ahead: deque[_Asked] = deque()
        self._updating: dict[int, Ref] = {}
        self._dead: dict[int, ReplayStats] = {}  # what was known of those that died and are not up again
        self._lost = self._restarts = 0

    def sample(self, count: int) -> Transitions | None:
        """The oldest batch asked for. What a shard that died owed it is left out.

        None where no shard has had anything for seconds: nothing is to be had from a replay that was lost.
        """
        assert count == self._batch
        while True:
            while len(self._ahead) < self._prefetch and self._ask_ahead():
                pass
            if not self._ahead:
                return None
            pieces = []
            for shard, share, ref in self._ahead.popleft().pieces:
                try:
                    transitions, stats = ray.get(ref)
                except RayActorError as error:
                    self._died(shard, error)
                else:
                    if shard not in self._dead:  # else it is an answer from before its death
                        self._heard(shard, stats)
                    if transitions is not None:
                        pieces.append((shard, share, transitions))
            if pieces:
                return merge(pieces)

    def update(self, batch: Transitions, error_B: F32) -> None:
        for shard, actor in enumerate(self._shards):
            mine_B = batch.shard_B == shard
            if mine_B.any():
                self._check_update(shard)
                self._updating[shard] = actor.update.remote(batch.id_B[mine_B], error_B[mine_B])

    def stats(self) -> ReplayStats:
        return total_stats(self._known)

    def losses(self) -> Mapping[str, float]:
        return {"replay_lost": float(self._lost), "replay_shard_restarts": float(self._restarts)}

    def _ask_ahead(self) -> bool:
        """Ask for one more batch; False where no shard has anything, and waiting a while did not help."""
        self._ask_the_empty()
        patience = time.monotonic() + _PATIENCE_S
        while not any(stats.mass for stats in self._known):
            if self._ahead or time.monotonic() > patience:
                return False
            time.sleep(_ASK_EVERY_S)
            self._ask_the_empty()
        mass_S = np.array([stats.mass for stats in self._known])
        count_S = allocate(mass_S, self._batch, self._rng)
        share_S = mass_S / mass_S.sum()
        self._ahead.append(
            _Asked(
                tuple(
                    (s, float(share_S[s]), self._shards[s].sample.remote(int(count_S[s])))
                    for s in np.flatnonzero(count_S).tolist()
                )
            )
        )
        return True

    def _ask_the_empty(self) -> None:
        for shard, ref in list(self._asking.items()):
            if not is_there(ref):
                continue
            del self._asking[shard]
            try:
                self._is_up(shard, get(ref))
            except RayActorError as error:
                self._died(shard, error)
        for shard, stats in enumerate(self._known):
            if stats.mass <= 0.0 and shard not in self._asking:
                self._asking[shard] = self._shards[shard].stats.remote()

    def _check_update(self, shard: int) -> None:
        """Nobody waits for priorities, and a shard that dies takes them along; but a defect must be heard."""
        ref = self._updating.pop(shard, None)
        if ref is not None and is_there(ref):
            try:
                ray.get(ref)
            except RayActorError as error:
                _raise_unless_death(error)

    def _heard(self, shard: int, stats: ReplayStats) -> None:
        known = self._known[shard]
        if known.instance and known.instance != stats.instance:
            # It died and came back while nothing was asked of it.
            self._restarts += 1
            self._lost += known.size
        self._known[shard] = stats

    def _is_up(self, shard: int, stats: ReplayStats) -> None:
        """It answered a question that was asked after its death, if it did die."""
        dead = self._dead.pop(shard, None)
        if dead is not None and dead.instance == stats.instance:
            # It was out of reach for a while, and has all it had.
            self._restarts -= 1
            self._lost -= dead.size
        self._heard(shard, stats)

    def _died(self, shard: int, error: RayActorError) -> None:
        """Count what it held, once, and ask nothing of it until its next life has something."""
        _raise_unless_death(error)
        known = self._known[shard]
        if known.instance:
            self._dead[shard] = known
            self._restarts += 1
            self._lost += known.size
        self._known[shard] = _EMPTY


class RayShards:
    """The shards as the conductor sees them: it gives them unrolls, and has them saved and loaded.

    The unrolls of one actor go to one shard, which links them; while that one is down, to the next.
    """

    def __init__(self, config: RunConfig, plan: Plan) -> None:
        options = {"num_cpus": 0, "memory": shard_bytes(config, plan), **beside_learner(plan)}
        shard: Any = ray.remote(**options, max_restarts=-1)(ShardActor)
        self.handles: list[Any] = [shard.remote(config, plan, s) for s in range(plan.shards)]
        self.lost = 0
        """Agent steps that were on their way to a shard that died."""
        self._adding: deque[tuple[int, int, Ref]] = deque()  # (shard, agent steps, done)
        self._down: dict[int, Ref] = {}  # an answer that comes when it is up again, by shard

    def add(self, collected: Sequence[Collected[Ref]]) -> None:
        """Returns when at most two unrolls a shard are on their way."""
        for item in collected:
            self._look_for_the_dead()
            shard = self._home(item.actor)
            self._adding.append((shard, item.steps, self.handles[shard].add.remote(item.unroll)))
            self.settle(_ADDS * len(self.handles))

    def settle(self, most: int) -> None:
        """Wait until at most ``most`` unrolls are on their way; all that has arrived is accounted for."""
        while self._adding and (len(self._adding) > most or is_there(self._adding[0][2])):
            shard, steps, done = self._adding.popleft()
            try:
                get(done)
            except ObjectLostError:  # with the node where the unroll was made
                self.lost += steps
            except RayActorError as error:
                _raise_unless_death(error)
                self.lost += steps
                if shard not in self._down:
                    self._down[shard] = self.handles[shard].stats.remote()

    def save_replay(self, directory: Path) -> None:
        """Leaves nothing where a shard dies meanwhile: a part of a replay is none."""
        self.settle(0)
        try:
            near, far = self._near_and_far(directory)
            get([shard.save.remote(folder) for shard, folder in near])
            for shard, folder in far:
                _save_far(shard, folder)
        except (ObjectLostError, FileNotFoundError):  # a piece went with its node, or the shard's files did
            shutil.rmtree(directory, ignore_errors=True)
        except RayActorError as error:
            _raise_unless_death(error)
            shutil.rmtree(directory, ignore_errors=True)

    def load_replay(self, directory: Path) -> None:
        """Raises ``ValueError`` where it was saved by other shards."""
        saved = len(list(directory.glob("shard-*")))
        if saved != len(self.handles):
            raise ValueError(f"a replay of {saved} shards does not fit {len(self.handles)}")
        near, far = self._near_and_far(directory)
        get([shard.load.remote(folder) for shard, folder in near])
        for shard, folder in far:
            _load_far(shard, folder)

    def close(self) -> None:
        for shard in self.handles:
            ray.kill(shard)

    def _home(self, actor: int) -> int:
        count = len(self.handles)
        candidates = [(actor + i) % count for i in range(count)]
        return next((shard for shard in candidates if shard not in self._down), candidates[0])

    def _look_for_the_dead(self) -> None:
        """Those that answer are up again."""
        for shard, ref in list(self._down.items()):
            if not is_there(ref):
                continue
            try:
                get(ref)
            except RayActorError as error:
                _raise_unless_death(error)
                self._down[shard] = self.handles[shard].stats.remote()
            else:
                del self._down[shard]

    def _near_and_far(self, directory: Path) -> tuple[list[tuple[Any, Path]], list[tuple[Any, Path]]]:
        """The shards that see this process's files, and the others, each with its folder."""
        folder, here = directory.resolve(), ray.get_runtime_context().get_node_id()
        shards = [(handle, folder / f"shard-{s}") for s, handle in enumerate(self.handles)]
        near = [node == here for node in get([handle.node.remote() for handle in self.handles])]
        return list(compress(shards, near)), list(compress(shards, [not n for n in near]))


def _save_far(shard: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    get(shard.begin_copy.remote())
    try:
        for name, size in get(shard.save_copy.remote()):
            with (folder / name).open("wb") as file:
                for start in range(0, size, _PIECE_BYTES):
                    file.write(get(shard.read_copy.remote(name, start, _PIECE_BYTES)))
    finally:
        shard.end_copy.remote()


def _load_far(shard: Any, folder: Path) -> None:
    get(shard.begin_copy.remote())
    try:
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    get(shard.append_copy.remote(path.name, piece))
        get(shard.load_copy.remote())
    finally:
        shard.end_copy.remote()


def _raise_unless_death(error: RayActorError) -> None:
    """Only the death of the actor that was asked is borne: a defect would repeat."""
    if isinstance(error, RayTaskError) or error.actor_init_failed:
        raise error
