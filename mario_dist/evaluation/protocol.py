"""A fixed way to judge weights: the same protocol and seed give the same report."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mario_dist.env import EnvConfig, make_env
from mario_dist.evaluation.policy import Player
from mario_dist.evaluation.statistics import iqm, iqm_interval, wilson
from mario_dist.nets import Network
from mario_dist.types import Episode, EvalReport

VERSION = 1
MAX_LANES = 16


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How many episodes, from which starts, by which policy.

    greedy: take the likeliest action instead of sampling. noop_max: random no-op frames at the start.
    """

    levels: tuple[str, ...]
    episodes: int
    noop_max: int
    seed: int
    greedy: bool = False
    sticky: float = 0.0


def evaluate(network: Network, env: EnvConfig, protocol: EvalProtocol, threads: int = 1) -> EvalReport:
    """Play ``protocol.episodes`` episodes of each level. The reward and ends are those of ``env``.

    A network whose logits are no distribution is played greedily, and the report's protocol says so.
    """
    protocol = dataclasses.replace(protocol, greedy=protocol.greedy or not network.stochastic)
    started = time.monotonic()
    episodes: list[Episode] = []
    for level in protocol.levels:
        config = dataclasses.replace(env, levels=(level,), noop_max=protocol.noop_max, sticky=protocol.sticky)
        episodes += _play(network, config, protocol, threads)
    return summarise(episodes, protocol, time.monotonic() - started)


def _play(network: Network, config: EnvConfig, protocol: EvalProtocol, threads: int) -> list[Episode]:
    """A fixed share of the episodes in every lane: taking whichever end first would favour the short."""
    n = min(protocol.episodes, MAX_LANES)
    quota_N = [len(range(lane, protocol.episodes, n)) for lane in range(n)]
    env = make_env(config, n, (protocol.seed,), threads)
    episodes: list[list[Episode]] = [[] for _ in range(n)]
    try:
        player = Player(network, env, seed=protocol.seed, greedy=protocol.greedy)
        while any(len(episodes[lane]) < quota_N[lane] for lane in range(n)):
            for episode in player.step().ended:
                if len(episodes[episode.lane]) < quota_N[episode.lane]:
                    episodes[episode.lane].append(episode)
    finally:
        env.close()
    return [episode for lane in episodes for episode in lane]


def summarise(episodes: Sequence[Episode], protocol: EvalProtocol, seconds: float) -> EvalReport:
    """The report of these episodes, over all of them and per level."""
    x = np.array([e.x_pos_max for e in episodes], dtype=np.float64)
    cleared = sum(e.flag_get for e in episodes)
    per_level: dict[str, dict[str, object]] = {}
    for level in dict.fromkeys(e.level for e in episodes):
        here = [e for e in episodes if e.level == level]
        flags = sum(e.flag_get for e in here)
        per_level[level] = {
            "episodes": len(here),
            "clear_rate": flags / len(here),
            "clear_rate_ci": list(wilson(flags, len(here))),
            "x_pos_mean": float(np.mean([e.x_pos_max for e in here])),
        }
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
        per_level=per_level,
        protocol={"version": VERSION, **dataclasses.asdict(protocol), "levels": list(protocol.levels)},
        seconds=seconds,
        mean_return=float(np.mean([e.episode_return for e in episodes])),
        ends=dict(Counter(e.end for e in episodes)),
    )
