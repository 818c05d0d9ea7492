"""From the NES picture to the frame that a policy sees."""

import cv2
import numpy as np

from mario_dist.types import U8


def observe(grey_240x256: U8, out_HW: U8, hud_rows: int) -> None:
    """Blacken the top ``hud_rows`` and area-resize into ``out_HW``. Changes ``grey_240x256``.

    The HUD shows score, coins and time: what moves there says little of what Mario should do.
    """
    grey_240x256[:hud_rows] = 0
    height, width = out_HW.shape
    cv2.resize(grey_240x256, (width, height), dst=out_HW, interpolation=cv2.INTER_AREA)


def empty_frames(n: int, frame_shape: tuple[int, int]) -> U8:
    """A buffer of ``n`` black frames: uint8 [n, H, W]."""
    return np.zeros((n, *frame_shape), dtype=np.uint8)
