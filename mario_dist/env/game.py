"""What the game's RAM says, for N lanes at once.

Addresses are those of the SMB disassembly, as gym-super-mario-bros 9.1 reads them.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mario_dist.types import I32, U8, Arrays, Bool

STATUS_NAMES = ("small", "tall", "fireball")
NORMAL_PLAYER = 8
"""``player_state`` while the player controls Mario."""

_DEAD, _DYING = 0x06, 0x0B
_BOWSER, _FLAGPOLE = 0x2D, 0x31
_JUMPS, _FALLS, _SLIDING_DOWN_POLE = 1, 2, 3
_LEFT_EDGE_ENTRY, _ENTRY = 0, 7
_TRANSITIONS = (_LEFT_EDGE_ENTRY, 1, 2, 3, _ENTRY)
"""``player_state`` while an area loads, at a vine's end, into a pipe (from the side, from above), and out."""
_WARP_ZONE, _NUMBERED_PIPES = 0x6D6, 4
_END_OF_WORLD = 2
# Mario runs at most 3 pixels a frame: a larger change between two looks is another place, not a run.
_JUMP_PIXELS = 64
# A maze sets Mario back by four pages.
_LOOP_PIXELS = 512

# The RAM that is read, in the order of the columns that `decode` works on.
_ADDRESSES = np.array(
    [
        *(0x6D, 0x86),  # x: page and pixel
        *range(0x7DE, 0x7E4),  # score, coins and time, one decimal digit a byte, the highest first
        *range(0x7ED, 0x7EF),
        *range(0x7F8, 0x7FB),
        *range(0x16, 0x1B),  # enemy types
        *(0x0E, 0xB5, 0x743, 0x75F, 0x75C, 0x760, 0x75A, 0x756, 0x770, 0x1D, 0x704),
    ]
)
_NUMBERS = slice(0, 13)
_ENEMIES = slice(13, 18)
_OTHERS = slice(18, None)


def _number_weights() -> I32:
    """[13, 4]: what each column of ``_NUMBERS`` adds to x, score, coins and time."""
    weights = np.zeros((13, 4), dtype=np.int32)
    weights[0:2, 0] = (256, 1)
    weights[2:8, 1] = 10 ** np.arange(5, -1, -1)
    weights[8:10, 2] = (10, 1)
    weights[10:13, 3] = (100, 10, 1)
    return weights


_NUMBER_WEIGHTS = _number_weights()


@dataclass(frozen=True, slots=True)
class GameState:
    """The state of N lanes; every field is an array of shape [N].

    x_raw is the position in the current area; x_pos is rebased so that entering a pipe or climbing a vine
    neither loses nor gains progress (but a maze's loop, which only moves Mario back, does lose it);
    x_best and x_raw_best are the furthest of the episode, x_landed the furthest at which he stood, swam or
    climbed: a leap counts there once it has ended. status: 0 small, 1 tall, 2 fireball.
    """

    x_raw: I32
    x_offset: I32
    x_best: I32
    x_raw_best: I32
    x_landed: I32
    world: I32
    stage: I32
    area: I32
    score: I32
    coins: I32
    time: I32
    life: I32
    status: I32
    player_state: I32
    flag: Bool
    dying: Bool

    @property
    def x_pos(self) -> I32:
        return self.x_raw + self.x_offset

    def looped(self, previous: "GameState") -> Bool:
        """In which lanes a maze set Mario back since ``previous``, a state of the same episodes: bool [N].

        Nothing else does: he runs 3 pixels a frame, and ``x_pos`` is rebased where he changes the area.
        """
        looped: Bool = self.x_pos < previous.x_pos - _LOOP_PIXELS
        return looped

    @property
    def in_transition(self) -> Bool:
        """In which lanes Mario is on his way to another area, whatever is pressed: bool [N]."""
        on_his_way: Bool = np.isin(self.player_state, _TRANSITIONS) & ~(self.dying | self.flag)
        return on_his_way

    def set_lanes(self, lanes: NDArray[np.int64], other: "GameState") -> None:
        """Overwrite these lanes, in place, with the rows of ``other``."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[lanes] = getattr(other, field.name)

    def lane(self, lane: int) -> "GameState":
        """A copy of one lane, as the state of one."""
        return GameState(*(getattr(self, f.name)[lane : lane + 1].copy() for f in dataclasses.fields(self)))

    def packed(self) -> I32:
        """All fields in one array: int32 [fields, N]."""
        return np.stack([getattr(self, f.name).astype(np.int32) for f in dataclasses.fields(self)])

    @classmethod
    def unpacked(cls, packed_FN: NDArray[np.generic]) -> "GameState":
        """The state that ``packed`` packed."""
        fields = zip(dataclasses.fields(cls), packed_FN, strict=True)
        return cls(*(row_N.astype(np.bool_ if f.type is Bool else np.int32) for f, row_N in fields))

    def to_arrays(self, prefix: str) -> Arrays:
        return {prefix + field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, prefix: str) -> "GameState":
        # Checkpoints from before it have no x_landed.
        arrays = {prefix + "x_landed": arrays[prefix + "x_best"], **arrays}
        return cls(**{f.name: arrays[prefix + f.name].copy() for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def decode(ram_NR: U8, previous: GameState | None = None) -> GameState:
    """Read the state of N lanes from RAM, uint8 [N, 2048].

    ``previous`` is the state one step earlier in the same episodes, None at their start.
    """
    # Columns as rows: each one is contiguous.
    ram_CN = ram_NR[:, _ADDRESSES].astype(np.int32).T.copy()
    x_raw, score, coins, time = _NUMBER_WEIGHTS.T @ ram_CN[_NUMBERS]
    # A maze that sets Mario back by more than he came takes the page below zero.
    x_raw = x_raw.astype(np.int16).astype(np.int32)
    enemy_EN = ram_CN[_ENEMIES]
    player_state, y_page, cloud, world, stage, area, life, power, mode, float_state, swims = ram_CN[_OTHERS]
    if previous is None:
        x_offset = np.zeros_like(x_raw)
        # Arrays of their own: lanes are written in place.
        x_best, x_raw_best, x_landed = x_raw.copy(), x_raw.copy(), x_raw.copy()
    else:
        # Only a change of area takes control from the player; a maze's loop doesn't.
        moved = np.abs(x_raw - previous.x_raw) > _JUMP_PIXELS
        taken = (player_state != NORMAL_PLAYER) | (previous.player_state != NORMAL_PLAYER)
        # While an area loads, x is 0 for a while and then the entrance's: neither is a step.
        loading = _enters(player_state) | _enters(previous.player_state)
        x_offset = np.where((moved & taken) | loading, previous.x_pos - x_raw, previous.x_offset)
        x_best = np.maximum(previous.x_best, x_raw + x_offset)
        x_raw_best = np.maximum(previous.x_raw_best, x_raw)
        flies = ((float_state == _JUMPS) | (float_state == _FALLS)) & (swims == 0)
        x_landed = np.where(flies, previous.x_landed, np.maximum(previous.x_landed, x_raw + x_offset))
    # Below the screen is death, except in the cloud bonus areas, where Mario falls back into the level.
    fell = (y_page > 1) & (cloud == 0)
    ending_enemy = ((enemy_EN == _BOWSER) | (enemy_EN == _FLAGPOLE)).any(axis=0)
    return GameState(
        x_raw=x_raw,
        x_offset=x_offset,
        x_best=x_best,
        x_raw_best=x_raw_best,
        x_landed=x_landed,
        world=world + 1,
        stage=stage + 1,
        area=area + 1,
        score=score,
        coins=coins,
        time=time,
        life=life,
        status=np.minimum(power, 2),
        player_state=player_state,
        flag=(mode == _END_OF_WORLD) | (ending_enemy & (float_state == _SLIDING_DOWN_POLE)),
        dying=(player_state == _DYING) | (player_state == _DEAD) | fell,
    )


def in_warp_zone(ram_NR: U8) -> Bool:
    """In which lanes a warp zone's pipes stand on the screen, or did since the area loaded: bool [N]."""
    in_zone: Bool = ram_NR[:, _WARP_ZONE] >= _NUMBERED_PIPES
    return in_zone


def _enters(player_state: I32) -> Bool:
    enters: Bool = (player_state == _LEFT_EDGE_ENTRY) | (player_state == _ENTRY)
    return enters
