"""Where a ring keeps its frames: as they are, or each compressed by LZ4.

Both take fixed memory when they are made (the system gives it as it is first used) and never more.
"""

from typing import Any, Literal, Protocol

import lz4.block
import numpy as np

from mario_dist.types import I64, U8, Arrays

Compression = Literal["none", "lz4"]

LZ4_BYTES_PER_FRAME = 1_900
"""What a compressed ring plans for a frame of 84 x 84. Mario's take 970 (4-2) to 1,730 (8-2) on average;
where frames take more than planned, the ring holds fewer transitions, not more memory."""


class FrameStore(Protocol):
    """Frames of ``blocks`` blocks of ``rows`` frames each; row r of block b is row b * rows + r overall."""

    def pack(self, frames_RHW: U8) -> Any:
        """A block in the form in which it is kept."""

    def fits(self, packed: Any) -> bool:
        """Whether there is room; if not, ``drop_oldest`` makes some."""

    def put(self, block: int, packed: Any) -> None: ...

    def drop_oldest(self) -> None: ...

    def take(self, row_BV: I64) -> U8:
        """The frames at these rows: uint8 [B, V, H, W]."""

    @property
    def nbytes(self) -> int:
        """Memory that frames take now."""

    def state(self, blocks: int) -> Arrays:
        """Views of all that the first ``blocks`` blocks hold."""

    def restore(self, arrays: Arrays) -> None:
        """Raises ``ValueError`` where they are another store's."""


class RawFrames:
    """Frames as they are."""

    def __init__(self, blocks: int, rows: int, frame_shape: tuple[int, int]) -> None:
        self._rows = rows
        self._frames: U8 = np.empty((blocks * rows, *frame_shape), dtype=np.uint8)
        self._used = 0

    def pack(self, frames_RHW: U8) -> U8:
        return frames_RHW

    def fits(self, packed: U8) -> bool:
        return True

    def put(self, block: int, packed: U8) -> None:
        start = block * self._rows
        self._frames[start : start + self._rows] = packed
        self._used = max(self._used, start + self._rows)

    def drop_oldest(self) -> None:
        """Its place is written over."""

    def take(self, row_BV: I64) -> U8:
        frames: U8 = np.take(self._frames, row_BV, axis=0)
        return frames

    @property
    def nbytes(self) -> int:
        return self._used * int(np.prod(self._frames.shape[1:]))

    def state(self, blocks: int) -> Arrays:
        return {"frames": self._frames[: blocks * self._rows]}

    def restore(self, arrays: Arrays) -> None:
        frames = arrays["frames"]
        if frames.shape[1:] != self._frames.shape[1:] or len(frames) > len(self._frames):
            raise ValueError(f"frames {frames.shape} do not fit {self._frames.shape}")
        self._frames[: len(frames)] = frames
        self._used = len(frames)


class Lz4Frames:
    """Each frame an LZ4 block, all of them in one arena that is written round and round.

    A position counts every byte ever written; its place is the position modulo the arena's size. A block
    lies in one piece: where the rest of the arena is too short for it, that rest is skipped.
    """

    def __init__(self, blocks: int, rows: int, frame_shape: tuple[int, int]) -> None:
        self._rows = rows
        self._shape = frame_shape
        self._frame_bytes = frame_shape[0] * frame_shape[1]
        planned = _arena_bytes(self._frame_bytes)
        # Tiny frames do not shrink: a block of frames that grew must fit still.
        worst = rows * (self._frame_bytes + self._frame_bytes // 255 + 16)
        self._arena: U8 = np.empty(max(blocks * rows * planned, 2 * worst), dtype=np.uint8)
        self._place: I64 = np.zeros((blocks * rows, 2), dtype=np.int64)  # start and end in the arena
        self._live: list[tuple[int, int]] = []  # (start, end) positions of the blocks, oldest first
        self._head = 0

    def pack(self, frames_RHW: U8) -> list[bytes]:
        return [lz4.block.compress(frame, store_size=False) for frame in np.ascontiguousarray(frames_RHW)]

    def fits(self, packed: list[bytes]) -> bool:
        oldest = self._live[0][0] if self._live else self._head
        return self._start(packed) + sum(map(len, packed)) - oldest <= len(self._arena)

    def put(self, block: int, packed: list[bytes]) -> None:
        start = self._start(packed)
        ends = start % len(self._arena) + np.cumsum([len(frame) for frame in packed])
        row = block * self._rows
        place_R2 = self._place[row : row + self._rows]
        place_R2[:, 1] = ends
        place_R2[:, 0] = ends - [len(frame) for frame in packed]
        content = b"".join(packed)
        self._arena[place_R2[0, 0] : place_R2[-1, 1]] = np.frombuffer(content, dtype=np.uint8)
        self._head = start + len(content)
        self._live.append((start, self._head))

    def drop_oldest(self) -> None:
        del self._live[0]

    def take(self, row_BV: I64) -> U8:
        frames: U8 = np.empty((row_BV.size, self._frame_bytes), dtype=np.uint8)
        arena, size = memoryview(self._arena), self._frame_bytes
        for i, (start, end) in enumerate(self._place[row_BV.ravel()].tolist()):
            frame = lz4.block.decompress(arena[start:end], uncompressed_size=size)
            frames[i] = np.frombuffer(frame, dtype=np.uint8)
        return frames.reshape(*row_BV.shape, *self._shape)

    @property
    def nbytes(self) -> int:
        return sum(end - start for start, end in self._live)

    def state(self, blocks: int) -> Arrays:
        return {
            "arena": self._arena[: min(self._head, len(self._arena))],
            "place": self._place[: blocks * self._rows],
            "live": np.array(self._live, dtype=np.int64).reshape(-1, 2),
            "head": np.array(self._head, dtype=np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        arena, place = arrays["arena"], arrays["place"]
        if len(arena) > len(self._arena) or len(place) > len(self._place):
            raise ValueError("compressed frames do not fit: they are of a larger ring")
        self._arena[: len(arena)] = arena
        self._place[: len(place)] = place
        self._live = [(int(start), int(end)) for start, end in arrays["live"]]
        self._head = int(arrays["head"])

    def _start(self, packed: list[bytes]) -> int:
        """The position where a block would begin."""
        left = -self._head % len(self._arena)
        return self._head + (left if sum(map(len, packed)) > left > 0 else 0)


def make_frame_store(
    compression: Compression, blocks: int, rows: int, frame_shape: tuple[int, int]
) -> FrameStore:
    if compression == "none":
        return RawFrames(blocks, rows, frame_shape)
    return Lz4Frames(blocks, rows, frame_shape)


def planned_bytes(compression: Compression, frame_shape: tuple[int, int]) -> int:
    """Memory that one stored transition may take: its frame, its numbers and its share of the sum tree."""
    frame = frame_shape[0] * frame_shape[1]
    numbers = 1 + 4 + 2 + 2 * 16  # action, reward, ends; up to two nodes a leaf, twice as many leaves
    if compression == "none":
        return frame + numbers
    return _arena_bytes(frame) + 16 + numbers  # and where in the arena the frame is


def _arena_bytes(frame_bytes: int) -> int:
    """The room planned for each compressed frame."""
    return min(frame_bytes, -(-LZ4_BYTES_PER_FRAME * frame_bytes // (84 * 84)))
