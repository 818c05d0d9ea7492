"""Pictures made of an NES's pictures: larger, with what the agent does under them, many in a grid.

All are pure functions of uint8 arrays [H, W, 3]. Text and buttons get room of their own or are drawn once
the picture is enlarged, so that they are sharp; the playing field's pixels stay as the machine drew them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mario_dist.types import U8

GAP = 2
"""Pixels between the cells of a grid."""

_STRIP_ROWS = 22
_FOOTER_ROWS = 24
_BACKGROUND = (20, 20, 20)
_UNLIT = (58, 62, 74)
_LIT = (255, 196, 40)
_TEXT = (236, 238, 242)
_QUIET = (150, 156, 170)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DIMMED = 0.4
_ARROWS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass(frozen=True, slots=True)
class Caption:
    """What one lane's strip says.

    buttons: those pressed, as ``env.actions`` names them. x_pos: in pixels. value: the network's estimate
    of the return to come, called ``value_name``.
    """

    buttons: tuple[str, ...]
    x_pos: int
    value: float
    value_name: str = "value"


def enlarged(rgb_HW3: U8, zoom: int) -> U8:
    """A copy with each pixel as a square of ``zoom`` x ``zoom`` pixels."""
    height, width = rgb_HW3.shape[:2]
    if zoom == 1:
        return rgb_HW3.copy()
    # The same as repeating twice, and several times as fast.
    picture = cv2.resize(rgb_HW3, (width * zoom, height * zoom), interpolation=cv2.INTER_NEAREST)
    return np.asarray(picture, dtype=np.uint8)


def captioned(rgb_HW3: U8, caption: Caption, zoom: int) -> U8:
    """The enlarged picture with its strip under it: [(H + 22) * zoom, W * zoom, 3]."""
    return np.concatenate([enlarged(rgb_HW3, zoom), strip(caption, rgb_HW3.shape[1], zoom)])


# An agent step's frames have one caption, and the lanes of a grid come back to theirs before it changes.
@functools.lru_cache(maxsize=64)
def strip(caption: Caption, width: int, zoom: int) -> U8:
    """Joypad, x-position and value on a strip: [22 * zoom, width * zoom, 3], read-only.

    Pressed buttons are lit.
    """
    picture = _blank(_STRIP_ROWS * zoom, width * zoom)
    _draw_pad(picture, caption.buttons, zoom)
    value = f"{caption.value_name} {caption.value:.2f}"
    _write(picture, f"x {caption.x_pos}", 66, zoom, _TEXT)
    _write(picture, value, 138, zoom, _TEXT)
    picture.setflags(write=False)
    return picture


@functools.lru_cache(maxsize=1)
def footer(text: str, width: int) -> U8:
    """One line about the whole picture: [24, width, 3], read-only. A text that is too long for it is cut."""
    picture = _blank(_FOOTER_ROWS, width)
    while text and _text_size(text, 0.45)[0] > width - 16:
        text = text[:-1]
    _put(picture, text, (8, 17), 0.45, _QUIET)
    picture.setflags(write=False)
    return picture


def finished(picture_HW3: U8, lines: Sequence[str], zoom: int) -> U8:
    """A dimmed copy with ``lines`` in its middle: an enlarged picture of a lane that plays no more."""
    picture = (picture_HW3 * _DIMMED).astype(np.uint8)
    scale = 0.6 * zoom
    pitch = round(22 * zoom)
    y = (picture.shape[0] - pitch * (len(lines) - 1)) // 2
    for line in lines:
        width, height = _text_size(line, scale)
        _put(picture, line, ((picture.shape[1] - width) // 2, y + height // 2), scale, _TEXT, zoom)
        y += pitch
    return picture


def grid(cells: Sequence[U8], columns: int) -> U8:
    """Pictures of one shape [H, W, 3] side by side, row by row, 2 pixels apart.

    Raises ``ValueError`` where they fill no whole rows.
    """
    if not cells or len(cells) % columns:
        raise ValueError(f"{len(cells)} pictures fill no rows of {columns}")
    if len(cells) == 1:
        return cells[0]
    height, width = cells[0].shape[:2]
    down, right = height + GAP, width + GAP
    picture = _blank(len(cells) // columns * down - GAP, columns * right - GAP)
    for i, cell in enumerate(cells):
        y, x = i // columns * down, i % columns * right
        picture[y : y + height, x : x + width] = cell
    return picture


def _blank(height: int, width: int) -> U8:
    return np.full((height, width, 3), _BACKGROUND[0], dtype=np.uint8)


def _draw_pad(picture: U8, buttons: tuple[str, ...], zoom: int) -> None:
    """A joypad in the strip's first 60 columns."""
    middle_x, middle_y, arm = 13 * zoom, _STRIP_ROWS * zoom // 2, 5 * zoom
    half = arm // 2
    _square(picture, middle_x, middle_y, half, _UNLIT)
    for name, (dx, dy) in _ARROWS.items():
        colour = _LIT if name in buttons else _UNLIT
        _square(picture, middle_x + dx * arm, middle_y + dy * arm, half, colour)
    for name, x in (("B", 34), ("A", 51)):
        lit = name in buttons
        centre = (x * zoom, middle_y)
        cv2.circle(picture, centre, 7 * zoom, _LIT if lit else _UNLIT, cv2.FILLED, cv2.LINE_AA)
        width, height = _text_size(name, 0.36 * zoom)
        at = (centre[0] - width // 2, centre[1] + height // 2)
        _put(picture, name, at, 0.36 * zoom, _BACKGROUND if lit else _QUIET, zoom)


def _square(picture: U8, x: int, y: int, half: int, colour: tuple[int, int, int]) -> None:
    cv2.rectangle(picture, (x - half, y - half), (x + half, y + half), colour, cv2.FILLED)


def _write(picture: U8, text: str, x: int, zoom: int, colour: tuple[int, int, int]) -> None:
    """Text in the middle of a strip, from column ``x`` of the picture before it was enlarged."""
    scale = 0.4 * zoom
    y = (picture.shape[0] + _text_size("0", scale)[1]) // 2
    _put(picture, text, (x * zoom, y), scale, colour, zoom)


def _text_size(text: str, scale: float) -> tuple[int, int]:
    """Width and height over the baseline, in pixels."""
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    return width, height


def _put(
    picture: U8, text: str, at: tuple[int, int], scale: float, colour: tuple[int, int, int], weight: int = 1
) -> None:
    cv2.putText(picture, text, at, _FONT, scale, colour, weight, cv2.LINE_AA)
