"""The last K frames of every lane, as a policy sees them."""

import numpy as np

from mario_dist.types import U8, Bool


class FrameStack:
    """Keeps frames_KNHW, uint8 [K, N, H, W], the newest last. An episode's first frame fills its stack.

    first_N: bool [N], where the newest frames are such first ones; None before anything was pushed.
    """

    def __init__(self, frame_stack: int) -> None:
        self._k = frame_stack
        self.frames_KNHW: U8 = np.zeros((frame_stack, 0, 0, 0), dtype=np.uint8)
        self.first_N: Bool | None = None

    def start(self, frame_NHW: U8) -> None:
        self.frames_KNHW = np.repeat(frame_NHW[None], self._k, axis=0)

    def push(self, frame_NHW: U8, first_N: Bool) -> None:
        """Add the newest frames; where ``first_N``, they are the first of an episode."""
        self.frames_KNHW[:-1] = self.frames_KNHW[1:]
        self.frames_KNHW[-1] = frame_NHW
        self.frames_KNHW[:, first_N] = frame_NHW[first_N]
        self.first_N = first_N

    def stack_NKHW(self) -> U8:
        """A contiguous copy, lanes first: uint8 [N, K, H, W]."""
        return self.frames_KNHW.swapaxes(0, 1).copy(order="C")
