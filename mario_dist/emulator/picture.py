"""From the NES picture to the frame that a policy sees."""

import numpy as np
from numpy.typing import NDArray

from mario_dist.emulator.protocol import SCREEN_SHAPE
from mario_dist.types import U8


class AreaResizer:
    """Blackens the top ``masked_rows`` of a picture and shrinks it: a pixel is the mean of what it covers.

    Exact, rounded to the nearest and halves up, as the native core does it, so that both backends show the
    same frames. ``cv2.INTER_AREA`` differs by one where its float sums meet a half.
    """

    def __init__(self, height: int, width: int, masked_rows: int) -> None:
        self._shape = (height, width)
        self._masked_rows = masked_rows

    def __call__(self, grey_240x256: U8, out_HW: U8) -> None:
        height, width = self._shape
        picture = grey_240x256.astype(np.uint32)  # nothing is above 255 * 240 * 256 * 256 < 2**32
        picture[: self._masked_rows] = 0
        total_HW = _shrink(_shrink(picture, height).T, width).T
        whole = SCREEN_SHAPE[0] * SCREEN_SHAPE[1]
        out_HW[:] = (total_HW + whole // 2) // whole


def _shrink(rows_SX: NDArray[np.uint32], target: int) -> NDArray[np.uint32]:
    """[target, X]: sums over the rows that each target row covers, in 1/target of a row.

    The integral over all rows above a place is linear between two rows; a sum is the difference of two.
    """
    source = len(rows_SX)
    integral = np.zeros((source + 2, rows_SX.shape[1]), dtype=np.uint32)
    np.cumsum(rows_SX, axis=0, dtype=np.uint32, out=integral[1:-1])
    integral[-1] = integral[-2]
    row, part = np.divmod(np.arange(target + 1, dtype=np.uint32) * np.uint32(source), np.uint32(target))
    at_edges = integral[row] * (target - part)[:, None] + integral[row + 1] * part[:, None]
    sums: NDArray[np.uint32] = at_edges[1:] - at_edges[:-1]
    return sums
