"""A fixed way to judge weights: the same protocol and seed give the same report."""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mario_dist.env import LEVELS, EnvConfig, FrameCallback, make_env
from mario_dist.evaluation.policy import Player
from mario_dist.evaluation.statistics import iqm, iqm_interval, wilson
from mario_dist.nets import Network
from mario_dist.types import Episode, EvalReport

VERSION = 2
MAX_LANES = 16
_BLOCK = 50
FRAMES_PER_S = 60.0988
"""Of an NTSC NES."""
_FRAMES_A_STEP = 4
PLACE_PIXELS = 100
"""The width of the places where a report says that Mario died."""


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How many episodes of each level, from which starts, to which ends, by which policy.

    noop_max: random no-op frames at the start, 0 to this many. greedy: take the likeliest action instead of
    sampling. sticky: the chance that an action repeats the one before. max_steps, stall_steps: as in
    ``EnvConfig``, but always in steps of 4 emulator frames, so that a policy is judged alike whatever it was
    trained with and however long its own steps are. Frames of a transition that a step skips do not count.
    """

    levels: tuple[str, ...]
    episodes: int = 100
    noop_max: int = 30
    seed: int = 0
    greedy: bool = False
    sticky: float = 0.0
    max_steps: int = 4500
    stall_steps: int = 300

    @property
    def name(self) -> str:
        """By which starts, ends and policy it is known: a key of ``PROTOCOLS``, or ``custom``."""
        return next((name for name, known in PROTOCOLS.items() if known(self)), "custom")

    def document(self) -> dict[str, object]:
        """Everything that a report depends on, as JSON-able values."""
        values = {**dataclasses.asdict(self), "levels": list(self.levels)}
        return {"name": self.name, "version": VERSION, **values}


def read_protocol(document: Mapping[str, Any]) -> EvalProtocol:
    """The protocol of a report, from what ``EvalProtocol.document`` said of it."""
    values = {field.name: document[field.name] for field in dataclasses.fields(EvalProtocol)}
    return EvalProtocol(**{**values, "levels": tuple(values["levels"])})


def _named(**settings: Any) -> Callable[[EvalProtocol], bool]:
    free = {"levels", "episodes", "seed"}

    def matches(protocol: EvalProtocol) -> bool:
        known = dataclasses.replace(EvalProtocol(protocol.levels), **settings)
        fields = (f.name for f in dataclasses.fields(protocol) if f.name not in free)
        return all(getattr(known, name) == getattr(protocol, name) for name in fields)

    return matches


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "jitter-30": {"noop_max": 30},
    "jitter-30-greedy": {"noop_max": 30, "greedy": True},
    "fixed-start": {"noop_max": 0},
    "fixed-start-greedy": {"noop_max": 0, "greedy": True},
    "sticky-25": {"noop_max": 30, "sticky": 0.25},
}
"""The named protocols. Levels, episodes and seed are given with each use; sticky-25 is that of Machado et
al. (2018)."""

PROTOCOLS = {name: _named(**settings) for name, settings in SETTINGS.items()}


@dataclass(frozen=True, slots=True)
class Block:
    """A part of an evaluation that is played on its own: ``episodes`` of a level, on lanes side by side.

    What comes out depends on nothing beside it, so blocks may be played anywhere at once.
    """

    level: str
    index: int
    episodes: int


def blocks(protocol: EvalProtocol) -> list[Block]:
    """The parts of ``protocol``, of as equal size as can be."""
    count = math.ceil(protocol.episodes / _BLOCK)
    sizes = [len(range(index, protocol.episodes, count)) for index in range(count)]
    return [Block(level, index, size) for level in protocol.levels for index, size in enumerate(sizes)]


def evaluate(
    network: Network, env: EnvConfig, protocol: EvalProtocol, workers: int = 1, lanes: int = MAX_LANES
) -> EvalReport:
    """Play ``protocol.episodes`` episodes of each level, ``workers`` blocks at once in threads.

    The pictures, actions and rewards are those of ``env``. A network whose logits are no distribution is
    played greedily, and the report's protocol says so. ``lanes`` side by side share a stream of samples:
    with another number the report is another one.
    """
    protocol = settled(protocol, network)
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        played = list(
            pool.map(lambda block: play_block(network, env, protocol, block, lanes), blocks(protocol))
        )
    episodes = [episode for block in played for episode in block]
    return summarise(episodes, protocol, time.monotonic() - started)


def settled(protocol: EvalProtocol, network: Network) -> EvalProtocol:
    """``protocol`` as this network plays it."""
    return dataclasses.replace(protocol, greedy=protocol.greedy or not network.stochastic)


def play_block(
    network: Network, env: EnvConfig, protocol: EvalProtocol, block: Block, lanes: int = MAX_LANES
) -> list[Episode]:
    """The episodes of one block, in the order in which they began."""
    played = dict(BlockPlayer(network, env, protocol, block, lanes=lanes))
    return [played[number] for number in sorted(played)]


class BlockPlayer:
    """One block as it is played: iterating gives (number, episode) as episodes end, numbered as they began.

    The first ``block.episodes`` that begin count, and each is played to its end: to take those that end first
    would favour the short ones. on_frame: as of ``MarioVectorEnv``, for who watches.
    """

    def __init__(
        self,
        network: Network,
        env: EnvConfig,
        protocol: EvalProtocol,
        block: Block,
        on_frame: FrameCallback | None = None,
        lanes: int = MAX_LANES,
    ) -> None:
        self.lanes = min(block.episodes, lanes)
        self.number_N: list[int | None] = list(range(self.lanes))
        """Which episode each lane plays; None where all have begun."""
        self._block = block
        seed = (protocol.seed, LEVELS.index(block.level), block.index)
        player_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        config = dataclasses.replace(
            env,
            levels=(block.level,),
            noop_max=protocol.noop_max,
            rewind=0.0,
            sticky=protocol.sticky,
            max_steps=_own_steps(protocol.max_steps, env.frame_skip),
            stall_steps=_own_steps(protocol.stall_steps, env.frame_skip),
            end_astray=False,
        )
        self.env = make_env(config, self.lanes, seed, on_frame=on_frame)
        self.player = Player(network, self.env, seed=player_seed, greedy=protocol.greedy)

    def __iter__(self) -> Generator[tuple[int, Episode]]:
        begun, left = self.lanes, self._block.episodes
        try:
            while left:
                for episode in self.player.step().ended:
                    number = self.number_N[episode.lane]
                    if number is None:
                        continue
                    left -= 1
                    yield number, episode
                    self.number_N[episode.lane] = begun if begun < self._block.episodes else None
                    begun += 1
        finally:
            self.env.close()


def _own_steps(steps: int, frame_skip: int) -> int:
    """As long in steps of ``frame_skip`` frames, rounded up; 0, which is none, stays."""
    return -(-steps * _FRAMES_A_STEP // frame_skip)


def summarise(episodes: Sequence[Episode], protocol: EvalProtocol, seconds: float) -> EvalReport:
    """The report of these episodes, over all of them and per level."""
    x = np.array([e.x_pos_max for e in episodes], dtype=np.float64)
    cleared = sum(e.flag_get for e in episodes)
    levels = dict.fromkeys(e.level for e in episodes)
    return EvalReport(
        clear_rate=cleared / len(episodes),
        clear_rate_ci=wilson(cleared, len(episodes)),
        x_pos={
            "mean": float(x.mean()),
            "median": float(np.median(x)),
            "iqm": iqm(x),
            "iqm_ci": list(iqm_interval(x)),
            "max": float(x.max()),
        },
        episodes=len(episodes),
        per_level={level: _of_level([e for e in episodes if e.level == level]) for level in levels},
        protocol=protocol.document(),
        seconds=seconds,
        mean_return=float(np.mean([e.episode_return for e in episodes])),
        ends=dict(Counter(e.end for e in episodes)),
    )


def _of_level(episodes: Sequence[Episode]) -> dict[str, object]:
    flags = sum(e.flag_get for e in episodes)
    x = np.array([e.x_pos_max for e in episodes], dtype=np.float64)
    places = Counter((e.end, e.x_pos_max // PLACE_PIXELS * PLACE_PIXELS) for e in episodes if not e.flag_get)
    clear_s = sorted(e.frames / FRAMES_PER_S for e in episodes if e.flag_get)
    return {
        "episodes": len(episodes),
        "clear_rate": flags / len(episodes),
        "clear_rate_ci": list(wilson(flags, len(episodes))),
        "x_pos_mean": float(x.mean()),
        "x_pos_iqm": iqm(x),
        "failures": [
            {"end": end, "x_from": place, "x_to": place + PLACE_PIXELS, "episodes": count}
            for (end, place), count in places.most_common()
        ],
        "seconds_to_clear": (
            {"mean": float(np.mean(clear_s)), "median": float(np.median(clear_s)), "best": clear_s[0]}
            if clear_s
            else None
        ),
        "played": {
            "x_pos": [e.x_pos_max for e in episodes],
            "end": [e.end for e in episodes],
            "agent_steps": [e.length for e in episodes],
        },
    }
