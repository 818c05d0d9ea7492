"""What RAM means: hand-written bytes, the installed package as oracle, and the real game."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from gym_super_mario_bros import SuperMarioBrosEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from mario_dist.emulator import RAM_BYTES, make_emulator
from mario_dist.env.actions import joypad_bytes
from mario_dist.env.game import NORMAL_PLAYER, GameState, decode, in_warp_zone
from mario_dist.env.starts import level_start
from mario_dist.types import U8

ENTERING_PIPE, LOADING, ENTRANCE, DEAD, DYING = 3, 0, 7, 6, 11
FIELDS = [field.name for field in dataclasses.fields(GameState)]


def write(
    x: int = 40,
    *,
    state: int = NORMAL_PLAYER,
    digits: Sequence[tuple[int, Sequence[int]]] = (),
    **bytes_at: int,
) -> U8:
    """One lane's RAM: Mario at ``x``, in a player state, and named bytes such as ``at_75F=3``."""
    ram = np.zeros(RAM_BYTES, dtype=np.uint8)
    ram[0x6D], ram[0x86] = divmod(x, 256)
    ram[0x0E] = state
    ram[0xB5] = 1
    for address, values in digits:
        ram[address : address + len(values)] = values
    for name, value in bytes_at.items():
        ram[int(name.removeprefix("at_"), 16)] = value
    return ram


def read(*rams: U8, previous: GameState | None = None) -> GameState:
    return decode(np.stack(rams), previous)


def walk(*rams: U8) -> list[GameState]:
    """The states of one lane, look after look in one episode."""
    states: list[GameState] = []
    for ram in rams:
        states.append(read(ram, previous=states[-1] if states else None))
    return states


def test_every_number() -> None:
    ram = write(
        3 * 256 + 17,
        digits=[(0x7DE, [0, 1, 2, 3, 4, 5]), (0x7ED, [4, 2]), (0x7F8, [3, 0, 7])],
        at_75F=6,
        at_75C=2,
        at_760=4,
        at_75A=2,
        at_756=1,
        at_E=9,
    )
    state = read(ram)
    expected = {
        "x_raw": 785,
        "x_offset": 0,
        "x_best": 785,
        "x_raw_best": 785,
        "x_landed": 785,
        "x_pos": 785,
        "world": 7,
        "stage": 3,
        "area": 5,
        "score": 12345,
        "coins": 42,
        "time": 307,
        "life": 2,
        "status": 1,
        "player_state": 9,
        "flag": False,
        "dying": False,
    }
    assert set(expected) == {*FIELDS, "x_pos"}
    assert {name: getattr(state, name).tolist() for name in expected} == {
        name: [value] for name, value in expected.items()
    }


def test_dtypes_and_shapes() -> None:
    first = read(write(), write(), write())
    for state in (first, read(write(), write(), write(), previous=first)):
        for name in FIELDS:
            array = getattr(state, name)
            assert array.shape == (3,), name
            assert array.dtype == (np.bool_ if name in ("flag", "dying") else np.int32), name


@pytest.mark.parametrize(
    ("address", "field", "n_digits"), [(0x7DE, "score", 6), (0x7ED, "coins", 2), (0x7F8, "time", 3)]
)
def test_digits_are_decimal_the_highest_first(address: int, field: str, n_digits: int) -> None:
    for place in range(n_digits):
        digits = [0] * n_digits
        digits[place] = 7
        assert getattr(read(write(digits=[(address, digits)])), field) == 7 * 10 ** (n_digits - 1 - place)
    assert getattr(read(write(digits=[(address, [9] * n_digits)])), field) == 10**n_digits - 1


def test_status_is_at_most_fireball() -> None:
    assert [int(read(write(at_756=value)).status[0]) for value in (0, 1, 2, 3, 255)] == [0, 1, 2, 2, 2]


def test_x_does_not_wrap_where_bytes_do() -> None:
    assert read(write(13 * 256 + 250)).x_raw == 3578


# Where Mario is.


def test_x_best_remembers_and_x_pos_does_not() -> None:
    states = walk(write(40), write(100), write(90), write(110))
    assert [int(s.x_pos[0]) for s in states] == [40, 100, 90, 110]
    assert [int(s.x_best[0]) for s in states] == [40, 100, 100, 110]
    assert [int(s.x_raw_best[0]) for s in states] == [40, 100, 100, 110]


@pytest.mark.parametrize(("float_state", "lands"), [(0, True), (1, False), (2, False), (3, True)])
@pytest.mark.parametrize("swims", [False, True])
def test_x_landed_is_where_mario_stood_swam_or_climbed(float_state: int, lands: bool, swims: bool) -> None:
    then = {"at_1D": float_state, "at_704": int(swims)}
    states = walk(write(40), write(100), write(90, at_1D=1), write(160, **then), write(150, at_1D=2))
    best = 160 if lands or swims else 100
    assert [int(s.x_landed[0]) for s in states] == [40, 100, 100, best, best]
    assert int(states[-1].x_best[0]) == 160


def test_checkpoints_from_before_x_landed_are_read() -> None:
    arrays = walk(write(40), write(100), write(160, at_1D=1))[-1].to_arrays("game.")
    assert GameState.from_arrays(arrays, "game.").x_landed.tolist() == [100]
    del arrays["game.x_landed"]
    assert GameState.from_arrays(arrays, "game.").x_landed.tolist() == [160]


def test_a_pipe_neither_loses_nor_gains_progress() -> None:
    states = walk(
        write(916),
        write(916, state=ENTERING_PIPE),
        write(24, state=ENTRANCE),
        write(24),
        write(60),
        write(120),
        write(180),
        write(208, state=2),
        write(2616, state=ENTRANCE),
        write(2616),
        write(2620),
    )
    assert [int(s.x_pos[0]) for s in states[:5]] == [916, 916, 916, 916, 952]
    assert [int(s.x_pos[0]) for s in states[-3:]] == [1100, 1100, 1104]
    assert int(states[-1].x_best[0]) == 1104
    assert int(states[-1].x_raw_best[0]) == 2620


def test_x_is_zero_while_an_area_loads_and_that_is_no_progress() -> None:
    """As the game does it: 0 for some frames, then the entrance, a short way on."""
    states = walk(
        write(916),
        write(916, state=ENTERING_PIPE),
        write(0, state=LOADING),
        write(24, state=ENTRANCE),
        write(24),
        write(27),
    )
    assert [int(s.x_pos[0]) for s in states] == [916] * 5 + [919]


def test_a_pipe_between_two_looks_is_one_too() -> None:
    """Seldom looked at, the game shows neither the loading nor the entrance, only the place behind it."""
    states = walk(write(916, state=ENTERING_PIPE), write(24), write(60))
    assert [int(s.x_pos[0]) for s in states] == [916, 916, 952]


def test_a_mazes_loop_loses_progress() -> None:
    """It moves Mario back by whole screens while the player controls him."""
    states = walk(write(1300), write(1303), write(1303 - 1024), write(1303 - 1000))
    assert [int(s.x_pos[0]) for s in states] == [1300, 1303, 279, 303]
    assert [int(s.x_best[0]) for s in states] == [1300, 1303, 1303, 1303]
    assert int(states[-1].x_offset[0]) == 0


def test_a_loop_is_told_apart_from_all_other_ways_back() -> None:
    states = walk(
        write(1300),
        write(1303 - 1024),  # a maze's loop
        write(916),
        write(916, state=ENTERING_PIPE),
        write(24, state=ENTRANCE),  # another area
        write(24),
        write(60),
        write(45),  # walking back
    )
    looped = [bool(state.looped(before)[0]) for before, state in pairwise(states)]
    assert looped == [True] + [False] * 6


def test_a_loop_may_set_mario_back_to_before_the_levels_start() -> None:
    before, after = walk(write(1009), write(65535))
    assert int(after.x_pos[0]) == -1
    assert int(after.x_best[0]) == 1009
    assert after.looped(before).tolist() == [True]


def test_steps_are_steps_whoever_makes_them() -> None:
    """Walking by himself, Mario still walks; a fast run of four frames is no change of place."""
    states = walk(write(100), write(112), write(116, state=2), write(120, state=2), write(117))
    assert [int(s.x_pos[0]) for s in states] == [100, 112, 116, 120, 117]


def test_an_episode_starts_at_its_own_x() -> None:
    state = read(write(700))
    assert state.x_offset == 0
    assert state.x_best == state.x_raw_best == 700


def test_in_transition_while_nothing_that_is_pressed_matters() -> None:
    on_his_way = [state for state in range(16) if read(write(state=state)).in_transition[0]]
    assert on_his_way == [LOADING, 1, 2, ENTERING_PIPE, ENTRANCE]
    assert not read(write(state=LOADING, at_B5=2)).in_transition, "he fell"
    assert not read(write(state=LOADING, at_770=2)).in_transition, "the world is over"


def test_a_warp_zone_is_one_when_its_pipes_have_numbers() -> None:
    """The byte is 1 when Mario only climbed over the ceiling that leads there."""
    at = np.stack([write(at_6D6=value) for value in range(7)])
    assert in_warp_zone(at).tolist() == [False] * 4 + [True] * 3


# How it ends.


@pytest.mark.parametrize("slot", range(0x16, 0x1B))
@pytest.mark.parametrize("enemy", [0x2D, 0x31])
def test_the_flag_by_the_pole_or_bowsers_axe(slot: int, enemy: int) -> None:
    there = {f"at_{slot:X}": enemy}
    assert read(write(**there, at_1D=3)).flag
    assert not read(write(**there, at_1D=0)).flag, "near it is not on it"
    assert not read(write(**{f"at_{slot:X}": 0x06}, at_1D=3)).flag, "climbing a vine is not the pole"


def test_other_slots_hold_no_flag() -> None:
    assert not read(write(at_15=0x31, at_1B=0x31, at_1D=3)).flag


def test_the_flag_by_the_end_of_the_world() -> None:
    assert [bool(read(write(at_770=mode)).flag[0]) for mode in range(4)] == [False, False, True, False]


def test_dying_by_the_players_state() -> None:
    dying = [state for state in range(16) if read(write(state=state)).dying[0]]
    assert dying == [DEAD, DYING]


def test_dying_by_falling() -> None:
    assert [bool(read(write(at_B5=screen)).dying[0]) for screen in range(6)] == [False, False] + [True] * 4


def test_falling_out_of_the_clouds_is_not_dying() -> None:
    assert not read(write(at_B5=2, at_743=1)).dying
    assert read(write(state=DYING, at_743=1)).dying


# Properties.

PLAYER_STATES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 8, 8, 8, 9, 11])
LOOKS = st.tuples(st.integers(0, 15), st.integers(0, 255), PLAYER_STATES)


@st.composite
def rams(draw: st.DrawFn) -> U8:
    """RAM of a few lanes over a few looks: uint8 [T, N, 2048], with steps, jumps and changes of control."""
    steps, lanes = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    ram = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(
        0, 256, (steps, lanes, RAM_BYTES), dtype=np.uint8
    )
    for digits in (slice(0x7DE, 0x7E4), slice(0x7ED, 0x7EF), slice(0x7F8, 0x7FB)):
        ram[..., digits] %= 10
    for lane in range(lanes):
        x = draw(st.integers(0, 3000))
        for t in range(steps):
            x = draw(st.one_of(st.integers(0, 4000), st.integers(max(0, x - 20), x + 20)))
            ram[t, lane, 0x6D], ram[t, lane, 0x86] = divmod(x, 256)
            ram[t, lane, 0x0E] = draw(PLAYER_STATES)
            ram[t, lane, 0x1D] = draw(st.sampled_from([0, 1, 3]))
            ram[t, lane, 0xB5] = draw(st.integers(0, 3))
            ram[t, lane, 0x743] = draw(st.integers(0, 1))
            ram[t, lane, 0x770] = draw(st.integers(0, 2))
            ram[t, lane, 0x16] = draw(st.sampled_from([0, 6, 0x2D, 0x31]))
    return ram


def run(ram_TNR: U8) -> list[GameState]:
    states: list[GameState] = []
    for ram_NR in ram_TNR:
        states.append(decode(ram_NR, states[-1] if states else None))
    return states


@given(rams())
@settings(max_examples=60, deadline=None)
def test_the_best_x_never_falls_and_is_never_behind(ram_TNR: U8) -> None:
    states = run(ram_TNR)
    for state in states:
        assert (state.x_best >= state.x_pos).all()
        assert (state.x_raw_best >= state.x_raw).all()
    for previous, state in pairwise(states):
        assert (state.x_best >= previous.x_best).all()
        assert (state.x_raw_best >= previous.x_raw_best).all()


@given(rams())
@settings(max_examples=60, deadline=None)
def test_lanes_are_independent(ram_TNR: U8) -> None:
    together = run(ram_TNR)
    for lane in range(ram_TNR.shape[1]):
        alone = run(ram_TNR[:, lane : lane + 1])
        for t, state in enumerate(alone):
            for name in FIELDS:
                assert getattr(together[t], name)[lane] == getattr(state, name)[0], (name, t, lane)


@given(rams())
@settings(max_examples=60, deadline=None)
def test_fields_are_those_of_gym_super_mario_bros(ram_TNR: U8) -> None:
    oracle = SuperMarioBrosEnv.__new__(SuperMarioBrosEnv)  # its readers want RAM and nothing else
    for state, ram_NR in zip(run(ram_TNR), ram_TNR, strict=True):
        for lane, ram in enumerate(ram_NR):
            oracle.ram = ram
            cloud = ram[0x743] != 0 and oracle._y_viewport > 1
            expected = {
                "x_raw": oracle._x_position,
                "world": oracle._world,
                "stage": oracle._stage,
                "area": oracle._area,
                "score": oracle._score,
                "coins": oracle._coins,
                "time": oracle._time,
                "life": oracle._life,
                "status": oracle._powerup_level,
                "player_state": oracle._player_state,
                "dying": oracle._is_dead or oracle._player_state == DYING or (oracle._is_dying and not cloud),
            }
            assert {name: int(getattr(state, name)[lane]) for name in expected} == expected
            # gsmb looks at the first such enemy only to ask one and the same question.
            assert bool(state.flag[lane]) == oracle._flag_get


def test_decode_changes_neither_ram_nor_the_previous_state() -> None:
    rams_NR = np.stack([write(100), write(200)])
    before = rams_NR.copy()
    first = decode(rams_NR)
    kept = first.to_arrays("")
    decode(np.stack([write(130), write(20, state=ENTRANCE)]), first)
    np.testing.assert_array_equal(rams_NR, before)
    for name, array in first.to_arrays("").items():
        np.testing.assert_array_equal(array, kept[name])


def test_set_lanes_replaces_those_lanes_only() -> None:
    first = read(write(40), write(50), write(60))
    state = read(write(100), write(110), write(120), previous=first)
    state.set_lanes(np.array([2, 0]), read(write(7), write(8)))
    assert state.x_raw.tolist() == [8, 110, 7]
    assert state.x_best.tolist() == [8, 110, 7]
    assert state.x_raw_best.tolist() == [8, 110, 7]
    assert first.x_raw.tolist() == [40, 50, 60], "the state before was changed too"


def test_arrays_there_and_back() -> None:
    state = read(write(40), write(50, at_770=2))
    arrays = state.to_arrays("game.")
    assert all(name.startswith("game.") for name in arrays)
    back = GameState.from_arrays(arrays, "game.")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(back, name), getattr(state, name))
        assert not np.shares_memory(getattr(back, name), arrays["game." + name])
        assert not np.shares_memory(getattr(state, name), arrays["game." + name])


# The real game.

# (action of COMPLEX, steps of four frames): from the start of 1-1 and one frame down the fourth pipe, through
# the bonus area and out again. Found by search.
DOWN_THE_PIPE = (
    (2, 8), (3, 8), (6, 1), (3, 4), (4, 8), (3, 8), (4, 8), (4, 8), (3, 4), (2, 3), (0, 2), (3, 8), (1, 3),
    (4, 8), (4, 5), (1, 3), (2, 6), (0, 2), (1, 2), (2, 3), (3, 8), (2, 6), (3, 4), (4, 5), (1, 1), (4, 8),
    (4, 3), (4, 5), (0, 4), (2, 3), (2, 6), (10, 2),
)  # fmt: skip
THROUGH_THE_BONUS = ((0, 60), (4, 8), (4, 8), (1, 8), (3, 6), (2, 8), (1, 8), (2, 8), (1, 8))


@pytest.mark.parametrize("frames_per_look", [1, 4])
def test_x_through_a_real_pipe(frames_per_look: int) -> None:
    joypads = joypad_bytes("COMPLEX")
    lane = make_emulator("auto")
    lane.load(level_start("auto", "1-1"))
    lane.step(0)
    states = walk(lane.ram.copy())
    for action, steps in DOWN_THE_PIPE + THROUGH_THE_BONUS:
        for frame in range(4 * steps):
            lane.step(int(joypads[action]))
            if frame % frames_per_look == frames_per_look - 1:
                states.append(read(lane.ram.copy(), previous=states[-1]))

    x_raw = np.array([int(s.x_raw[0]) for s in states])
    x_pos = np.array([int(s.x_pos[0]) for s in states])
    assert not any(s.dying[0] for s in states)
    assert x_raw[-1] > 2600, "Mario did not come out of the other pipe"
    assert np.abs(np.diff(x_raw)).max() > 2000
    # In and out, he never makes more than his fastest step, and the bonus area's width is what he gains.
    assert np.abs(np.diff(x_pos)).max() <= 3 * frames_per_look
    entered, left = int(np.argmax(x_raw == 0)), int(np.argmax(x_raw > 2000))
    assert x_pos[entered] == x_pos[entered - 1] == 916
    assert 916 + 160 < x_pos[left] < 916 + 210
    assert int(states[-1].x_best[0]) == x_pos.max()
