"""Action sets: presets, custom lists, and errors that name what is wrong."""

import gym_super_mario_bros.actions as gsmb
import numpy as np
import pytest
from nes_py.wrappers import JoypadSpace

from mario_dist.env.actions import action_names, action_set, joypad_bytes

PRESETS = {
    "RIGHT_ONLY": gsmb.RIGHT_ONLY,
    "SIMPLE": gsmb.SIMPLE_MOVEMENT,
    "COMPLEX": gsmb.COMPLEX_MOVEMENT,
}


@pytest.mark.parametrize(("preset", "n_actions"), [("RIGHT_ONLY", 5), ("SIMPLE", 7), ("COMPLEX", 12)])
def test_presets_press_what_nes_py_presses(preset: str, n_actions: int) -> None:
    joypads = joypad_bytes(preset)
    assert joypads.dtype == np.uint8
    assert len(joypads) == len(action_names(preset)) == n_actions
    buttons = JoypadSpace._button_map
    expected = [sum(buttons[button] for button in combo) for combo in PRESETS[preset]]
    assert joypads.tolist() == expected


def test_no_preset_can_pause_the_game() -> None:
    for preset in PRESETS:
        assert not (joypad_bytes(preset) & 0b1100).any()


def test_names_are_readable_and_distinct() -> None:
    assert action_names("RIGHT_ONLY") == ("NOOP", "right", "right+A", "right+B", "right+A+B")
    for preset in PRESETS:
        names = action_names(preset)
        assert len(set(names)) == len(names)


def test_a_custom_list() -> None:
    custom = [["NOOP"], [], ["right", "B"], ["down"], ["A", "B", "select", "start"], ["up", "left"]]
    assert action_set(custom) == (
        (),
        (),
        ("right", "B"),
        ("down",),
        ("A", "B", "select", "start"),
        ("up", "left"),
    )
    assert joypad_bytes(custom).tolist() == [0, 0, 128 + 2, 32, 1 + 2 + 4 + 8, 16 + 64]
    assert action_names(custom)[:4] == ("NOOP", "NOOP", "right+B", "down")


def test_tuples_are_as_good_as_lists() -> None:
    assert joypad_bytes((("right",), ("right", "A"))).tolist() == [128, 129]


def test_a_button_named_twice_is_that_button() -> None:
    assert joypad_bytes([["A", "A"], ["right", "right"]]).tolist() == [1, 128]


@pytest.mark.parametrize(
    ("actions", "named"),
    [
        ("SIMPEL", "'SIMPEL'"),
        ("simple", "'simple'"),
        ([["right"], ["jump"]], "'jump'"),
        ([["Right"]], "'Right'"),
        ([], "actions is empty"),
        ((), "actions is empty"),
    ],
)
def test_errors_name_the_bad_thing(actions: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        action_set(actions)  # type: ignore[arg-type]


def test_errors_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="RIGHT_ONLY, SIMPLE, COMPLEX"):
        action_set("FAST")
    with pytest.raises(ValueError, match="A, B, select, start, up, down, left, right"):
        action_set([["C"]])
