"""Action sets: lists of button combinations, and the joypad bytes that they press."""

from collections.abc import Sequence

import numpy as np
from gym_super_mario_bros.actions import COMPLEX_MOVEMENT, RIGHT_ONLY, SIMPLE_MOVEMENT

from mario_dist.types import U8

BUTTONS = {"A": 1, "B": 2, "select": 4, "start": 8, "up": 16, "down": 32, "left": 64, "right": 128}
"""Bit of each button in the joypad byte that an ``Emulator`` takes."""

PRESETS: dict[str, list[list[str]]] = {
    "RIGHT_ONLY": RIGHT_ONLY,
    "SIMPLE": SIMPLE_MOVEMENT,
    "COMPLEX": COMPLEX_MOVEMENT,
}


def action_set(actions: str | Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The button combinations of a preset's name or a custom list; NOOP is no button.

    Raises ``ValueError`` naming the unknown preset or button.
    """
    if isinstance(actions, str):
        if actions not in PRESETS:
            raise ValueError(f"there is no action set {actions!r}; presets are {', '.join(PRESETS)}")
        actions = PRESETS[actions]
    if not actions:
        raise ValueError("actions is empty; name a preset or at least one button list")
    combos = tuple(tuple(button for button in combo if button != "NOOP") for combo in actions)
    for button in (button for combo in combos for button in combo):
        if button not in BUTTONS:
            raise ValueError(f"there is no button {button!r}; buttons are {', '.join(BUTTONS)}")
    return combos


def action_names(actions: str | Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A readable name for each action, such as ``right+A``."""
    return tuple("+".join(combo) or "NOOP" for combo in action_set(actions))


def joypad_bytes(actions: str | Sequence[Sequence[str]]) -> U8:
    """The joypad byte of each action: uint8 [A]."""
    return np.array([sum(BUTTONS[b] for b in set(combo)) for combo in action_set(actions)], dtype=np.uint8)
