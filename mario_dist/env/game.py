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
_ENEMY_TYPES = slice(0x16, 0x1B)
_BOWSER, _FLAGPOLE = 0x2D, 0x31
_SLIDING_DOWN_POLE = 3
_ENTERING = (0, 7)
_END_OF_WORLD = 2
# Mario runs at most 3 pixels a frame: a larger change between two looks is another place, not a run.
_JUMP_PIXELS = 64


@dataclass(frozen=True, slots=True)
class GameState:
    """The state of N lanes; every field is an array of shape [N].

    x_raw is the position in the current area; x_pos is rebased so that entering a pipe or climbing a vine
    neither loses nor gains progress (but a maze's loop, which only moves Mario back, does lose it);
    x_best and x_raw_best are the furthest of the episode. status: 0 small, 1 tall, 2 fireball.
    """

    x_raw: I32
    x_offset: I32
    x_best: I32
    x_raw_best: I32
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

    def set_lanes(self, lanes: NDArray[np.int64], other: "GameState") -> None:
        """Overwrite these lanes, in place, with the rows of ``other``."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[lanes] = getattr(other, field.name)

    def to_arrays(self, prefix: str) -> Arrays:
        return {prefix + field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, prefix: str) -> "GameState":
        return cls(**{f.name: arrays[prefix + f.name].copy() for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def decode(ram_NR: U8, previous: GameState | None = None) -> GameState:
    """Read the state of N lanes from RAM, uint8 [N, 2048].

    ``previous`` is the state one step earlier in the same episodes, None at their start.
    """
    ram = ram_NR.astype(np.int32)
    x_raw = ram[:, 0x6D] * 256 + ram[:, 0x86]
    player_state = ram[:, 0x0E]
    if previous is None:
        x_offset = np.zeros_like(x_raw)
        x_best = x_raw_best = x_raw
    else:
        # Only a change of area takes control from the player; a maze's loop doesn't.
        moved = np.abs(x_raw - previous.x_raw) > _JUMP_PIXELS
        taken = (player_state != NORMAL_PLAYER) | (previous.player_state != NORMAL_PLAYER)
        # While an area loads, x is 0 for a while and then the entrance's: neither is a step.
        loading = np.isin(player_state, _ENTERING) | np.isin(previous.player_state, _ENTERING)
        x_offset = np.where((moved & taken) | loading, previous.x_pos - x_raw, previous.x_offset).astype(
            np.int32
        )
        x_best = np.maximum(previous.x_best, x_raw + x_offset)
        x_raw_best = np.maximum(previous.x_raw_best, x_raw)
    # Below the screen is death, except in the cloud bonus areas, where Mario falls back into the level.
    fell = (ram[:, 0xB5] > 1) & (ram[:, 0x743] == 0)
    ending_enemy = np.isin(ram[:, _ENEMY_TYPES], (_BOWSER, _FLAGPOLE)).any(axis=1)
    return GameState(
        x_raw=x_raw,
        x_offset=x_offset,
        x_best=x_best,
        x_raw_best=x_raw_best,
        world=ram[:, 0x75F] + 1,
        stage=ram[:, 0x75C] + 1,
        area=ram[:, 0x760] + 1,
        score=_digits(ram[:, 0x7DE:0x7E4]),
        coins=_digits(ram[:, 0x7ED:0x7EF]),
        time=_digits(ram[:, 0x7F8:0x7FB]),
        life=ram[:, 0x75A],
        status=np.minimum(ram[:, 0x756], 2),
        player_state=player_state,
        flag=(ram[:, 0x770] == _END_OF_WORLD) | (ending_enemy & (ram[:, 0x1D] == _SLIDING_DOWN_POLE)),
        dying=(player_state == _DYING) | (player_state == _DEAD) | fell,
    )


def _digits(ram_ND: I32) -> I32:
    """Numbers that the game keeps as one decimal digit a byte, the highest first."""
    powers = 10 ** np.arange(ram_ND.shape[1] - 1, -1, -1, dtype=np.int32)
    numbers: I32 = (ram_ND @ powers).astype(np.int32)
    return numbers
