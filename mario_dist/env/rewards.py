"""Reward presets by name: pure functions of the previous and the current state of N lanes.

Each takes two ``GameState`` one agent step apart in the same episode and returns float32 [N].
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mario_dist.env.game import GameState
from mario_dist.types import F32, I32, Bool

RewardFn = Callable[[GameState, GameState], F32]

_MILESTONES = ((650, 150.0), (900, 100.0), (1200, 150.0), (1600, 200.0), (2000, 250.0))
# gym-super-mario-bros takes a larger change of x in one frame for a change of place, and pays nothing.
_NATIVE_MAX_PIXELS_PER_FRAME = 5


def native(previous: GameState, current: GameState, *, frames: int = 1) -> F32:
    """The reward of gym-super-mario-bros 9.1, clipped to +-15 per step.

    Equal to the package's for ``frames`` = 1. Over more frames its parts are those of the whole step and
    the clip applies to their sum, where a frame-skipping wrapper would add up the clipped frames.
    """
    progress = current.x_raw_best - previous.x_raw_best
    progress = np.where(progress > _NATIVE_MAX_PIXELS_PER_FRAME * frames, 0, progress)
    coins = current.coins - previous.coins
    coins = np.where(coins < -50, coins + 100, coins)
    total = (
        progress
        + np.minimum(current.time - previous.time, 0)
        + np.maximum(current.score - previous.score, 0) / 100
        + np.maximum(coins, 0) * 5
        + (current.status - previous.status) * 5
        + _cleared(previous, current) * 50
        - current.dying * 25
    )
    return _float32(np.clip(total, -15, 15))


def progress(previous: GameState, current: GameState) -> F32:
    """(New best x in pixels, at most 30, + score / 100 + 50 for the flag - 25 for a death) / 10."""
    return _for_pixels(np.minimum(current.x_best - previous.x_best, 30), previous, current)


def landed(previous: GameState, current: GameState) -> F32:
    """``progress``, but for pixels at whose end Mario landed, all of a leap at once.

    Paid on the way, a leap into a pit pays as well as one over it until it is too late, and where the way on
    takes patience that is the best that a short-sighted policy finds: to dive as far as it goes.
    """
    return _for_pixels(current.x_landed - previous.x_landed, previous, current)


def _for_pixels(pixels_N: I32, previous: GameState, current: GameState) -> F32:
    total = (
        pixels_N
        + np.maximum(current.score - previous.score, 0) / 100
        + _cleared(previous, current) * 50
        - _died(previous, current) * 25
    )
    return _float32(total / 10)


def shaped(previous: GameState, current: GameState) -> F32:
    """+-0.1 a pixel, -0.2 for standing still, -50 for a death, and milestones at five places of 1-1."""
    moved = current.x_pos - previous.x_pos
    total = np.where(moved == 0, -0.2, 0.1 * moved) - _died(previous, current) * 50.0
    for x, bonus in _MILESTONES:
        total += ((previous.x_best < x) & (current.x_best >= x)) * bonus
    return _float32(total)


def clipped(previous: GameState, current: GameState) -> F32:
    """(+-1 for moving right or left - 50 for a death + 1000 for the flag) / 10, clipped to [-1, 1]."""
    total = (
        np.sign(current.x_pos - previous.x_pos)
        - _died(previous, current) * 50
        + _cleared(previous, current) * 1000
    )
    return _float32(np.clip(total / 10, -1, 1))


def reward_fn(name: str, frame_skip: int) -> RewardFn:
    """The preset of that name for agent steps of ``frame_skip`` frames."""
    if name == "native":
        return lambda previous, current: native(previous, current, frames=frame_skip)
    return {"progress": progress, "landed": landed, "shaped": shaped, "clipped": clipped}[name]


def _cleared(previous: GameState, current: GameState) -> Bool:
    return current.flag & ~previous.flag


def _died(previous: GameState, current: GameState) -> Bool:
    # The flag wins: Mario can't die any more once he holds it.
    return current.dying & ~previous.dying & ~current.flag


def _float32(reward_N: NDArray[np.generic]) -> F32:
    return reward_N.astype(np.float32)
