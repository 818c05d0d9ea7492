"""Practice where Mario died: moments of each lane's episode, to go back to.

A start-state curriculum that needs no list of places: as in the backward algorithm of Salimans & Chen
(2018) and Go-Explore (Ecoffet et al. 2021), experience is made where the policy fails. A lane that goes back
dies, goes back and gets further, so it walks through the level long before a policy can do so in one go.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mario_dist.env.game import GameState
from mario_dist.types import Arrays

EVERY = 8
"""Agent steps between two moments."""
_BACK = 8
"""From how many of the newest moments one is drawn: up to 64 agent steps back, 4 seconds of the game."""
_KEPT = 3 * _BACK


@dataclass(frozen=True, slots=True)
class Moment:
    """A lane's machine as ``Emulator.save`` gave it, and what was known of its game, a state of one lane."""

    machine: bytes
    game: GameState


class Moments:
    """The newest moments of each lane's episode, and of the one that it went back into."""

    def __init__(self, n_lanes: int) -> None:
        self._kept: list[deque[Moment]] = [deque(maxlen=_KEPT) for _ in range(n_lanes)]

    def keep(self, lane: int, moment: Moment) -> None:
        self._kept[lane].append(moment)

    def forget(self, lane: int) -> None:
        self._kept[lane].clear()

    def go_back(self, lane: int, rng: np.random.Generator) -> Moment | None:
        """One of the newest moments, each as likely; those after it are forgotten. None without any.

        It is itself forgotten too, so that who dies again and again at one place comes from further back.
        """
        kept = self._kept[lane]
        if not kept:
            return None
        for _ in range(rng.integers(min(_BACK, len(kept)))):
            kept.pop()
        return kept.pop()

    def state(self) -> Arrays:
        arrays: Arrays = {}
        for lane, kept in enumerate(self._kept):
            for number, moment in enumerate(kept):
                name = f"{lane}.{number}"
                arrays[f"{name}.machine"] = np.frombuffer(moment.machine, dtype=np.uint8)
                arrays[f"{name}.game"] = moment.game.packed()
        return arrays

    def restore(self, arrays: Arrays) -> None:
        for lane, kept in enumerate(self._kept):
            kept.clear()
            kept.extend(_moments(arrays, lane))


def _moments(arrays: Arrays, lane: int) -> Iterator[Moment]:
    for number in range(_KEPT):
        name = f"{lane}.{number}"
        if f"{name}.machine" not in arrays:
            return
        yield Moment(arrays[f"{name}.machine"].tobytes(), GameState.unpacked(arrays[f"{name}.game"]))
