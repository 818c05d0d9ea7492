"""Where Mario's episodes end when not at the flag, and what stands there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mario_dist.types import I64, EpisodeEnd

BIN_PIXELS = 32
"""Two tiles: as wide as the narrowest pit."""
CAUSES: tuple[EpisodeEnd, ...] = ("death", "stall", "astray", "time", "truncated")


@dataclass(frozen=True, slots=True)
class Landmark:
    """Something of a level from ``x_from`` to ``x_to``, in pixels of Mario's x-position."""

    name: str
    x_from: int
    x_to: int


def _tiles(name: str, first: int, last: int) -> Landmark:
    """From the left edge of one column of tiles to the right edge of another; a tile is 16 pixels wide."""
    return Landmark(name, 16 * first, 16 * (last + 1))


LANDMARKS: Mapping[str, tuple[Landmark, ...]] = {
    "1-1": (
        _tiles("pipe", 28, 29),
        _tiles("pipe", 38, 39),
        _tiles("pipe", 46, 47),
        _tiles("pipe", 57, 58),
        _tiles("first pit", 69, 70),
        _tiles("second pit", 86, 88),
        _tiles("steps", 134, 143),
        _tiles("third pit", 153, 154),
        _tiles("pipe", 163, 164),
        _tiles("stairs", 181, 189),
        # Where x_pos stands when Mario holds the pole, not the pole's own column.
        Landmark("flag", 3161, 3161),
    ),
}
"""Of levels whose layout is certain; others are drawn without.

The columns of 1-1 are as the game itself lays them out in RAM (from 0x500 on) while Mario runs. Its last
pipe, at columns 179 and 180, stands too close to the stairs for a name.
"""


def count_failures(
    x_pos: ArrayLike, ends: Sequence[str], bin_pixels: int = BIN_PIXELS
) -> dict[EpisodeEnd, I64]:
    """How many episodes ended in each stretch of ``bin_pixels``, int64 [bins], for each cause that occurred.

    Bin i holds x from ``i * bin_pixels``; all arrays are of one length. Those that reached the flag are not
    failures. A cause unknown to ``CAUSES`` is left out.
    """
    x = np.maximum(np.asarray(x_pos, dtype=np.int64), 0)
    end = np.asarray(ends, dtype=np.str_)
    bins = int(x.max()) // bin_pixels + 1 if x.size else 0
    return {
        cause: np.bincount(x[end == cause] // bin_pixels, minlength=bins)
        for cause in CAUSES
        if (end == cause).any()
    }
