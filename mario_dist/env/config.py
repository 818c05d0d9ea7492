"""What an environment is made of, as configuration."""

from dataclasses import dataclass
from typing import Literal

from mario_dist.env.actions import action_set

LEVELS = tuple(f"{world}-{stage}" for world in range(1, 9) for stage in range(1, 5))
"""The 32 levels of Super Mario Bros., as ``world-stage``."""


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """One lane's game, observation, reward and ends. Lengths are in agent steps unless named otherwise.

    actions: a preset (RIGHT_ONLY, SIMPLE, COMPLEX) or a list of button lists, e.g. [[right], [right, A]].
    hud_rows: rows of the 240-row picture that are blackened before it is resized.
    show_buttons: draw the buttons that the lane pressed in a step, one block each, into the blackened rows.
    A jump begins only where A was not held before, which no picture of the game shows.
    noop_max: each episode starts after 0..noop_max random no-op emulator frames.
    rewind: probability that after a death the lane goes on from a moment shortly before it instead of at the
    level's start, to practise what killed it; the steps count, the episode does not (``env.rewind``).
    sticky: probability that an action repeats the one before it (Machado et al. 2018).
    stall_steps: steps without a new best x after which the episode ends as ``stall``; 0 turns it off.
    max_steps: steps after which the episode is truncated; 0 turns it off.
    end_astray: end the episode as ``astray`` when a maze (4-4, 7-4, 8-4) sets Mario back for a wrong path,
    after which no picture says that he walks there a second time, or when he comes to a warp zone (1-2, 4-2),
    whose end wall is further to the right than the flag.
    skip_transitions: frames in which Mario goes through pipes and areas load pass within the step that led
    there, with its buttons held: some 200 frames in which no action matters.
    emulator: auto is the native core where it was built, else nes-py; both play the same game.
    rom: one's own ROM file, to be checked: it is refused unless its contents are those of the ROM that
    gym-super-mario-bros brings, and that one is played.
    """

    kind: Literal["mario", "probe"] = "mario"
    levels: tuple[str, ...] = ("1-1",)
    actions: str | tuple[tuple[str, ...], ...] = "SIMPLE"
    reward: Literal["native", "progress", "landed", "shaped", "clipped"] = "progress"
    frame_skip: int = 4
    frame_size: tuple[int, int] = (84, 84)
    frame_stack: int = 4
    hud_rows: int = 32
    show_buttons: bool = False
    noop_max: int = 30
    rewind: float = 0.0
    sticky: float = 0.0
    stall_steps: int = 300
    max_steps: int = 4500
    end_astray: bool = False
    skip_transitions: bool = False
    emulator: Literal["auto", "native", "nes-py"] = "auto"
    rom: str = ""

    def __post_init__(self) -> None:
        for level in self.levels:
            if level not in LEVELS:
                raise ValueError(f"there is no level {level!r}; levels are 1-1 to 8-4")
        if not self.levels:
            raise ValueError("levels is empty; name at least one, such as 1-1")
        if min(self.frame_skip, self.frame_stack, *self.frame_size) < 1:
            raise ValueError("frame_skip, frame_stack and frame_size must be at least 1")
        if self.frame_size[0] > 240 or self.frame_size[1] > 256:
            raise ValueError("frame_size is at most [240, 256], the NES's own picture")
        if not 0 <= self.hud_rows < 240:
            raise ValueError("hud_rows must be in 0..239")
        if self.show_buttons and (self.hud_rows * self.frame_size[0] < 240 or self.frame_size[1] < 8):
            raise ValueError("show_buttons needs hud_rows to draw into, and 8 columns")
        if not 0.0 <= self.sticky < 1.0:
            raise ValueError("sticky must be in [0, 1)")
        if not 0.0 <= self.rewind < 1.0:
            raise ValueError("rewind must be in [0, 1)")
        if min(self.noop_max, self.stall_steps, self.max_steps) < 0:
            raise ValueError("noop_max, stall_steps and max_steps must not be negative")
        action_set(self.actions)
