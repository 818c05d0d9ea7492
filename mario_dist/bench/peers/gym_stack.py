"""The environment stack that Gymnasium users have: gym-super-mario-bros, JoypadSpace, skip, grey, stack.

It is written as well as such a stack can be, because the peers that run on it are respected ones: the
picture is converted once per agent step by nes-py's own grey copy (9 times faster here than cvtColor on
the strided RGB view), skip, crop, resize and stack are one wrapper, and of the 42 info entries only two
go on through the pipes. What remains is nes-py's emulation, over 90 % of a step.
"""

from typing import Any

import cv2
import gym_super_mario_bros
import gymnasium as gym
import numpy as np
from nes_py.wrappers import JoypadSpace

from mario_dist.env.actions import PRESETS
from mario_dist.types import U8

KEPT_INFO = ("x_pos_max", "flag_get")


class MarioPicture(gym.Wrapper[U8, int, U8, int]):
    """Repeats an action, sums its rewards and returns the last ``stack`` pictures: uint8 [K, H, W]."""

    def __init__(
        self, env: gym.Env[U8, int], frame_skip: int, size: tuple[int, int], stack: int, hud_rows: int
    ) -> None:
        super().__init__(env)
        self._frame_skip = frame_skip
        self._width_height = (size[1], size[0])
        self._hud_rows = hud_rows
        self._grey: U8 = np.empty((240, 256), dtype=np.uint8)
        self._stack: U8 = np.zeros((stack, *size), dtype=np.uint8)
        self.observation_space = gym.spaces.Box(0, 255, self._stack.shape, np.uint8)
        self._console: Any = env.unwrapped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[U8, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        self._stack = np.repeat(self._picture()[None], len(self._stack), axis=0)
        return self._stack, _trim(info)

    def step(self, action: int) -> tuple[U8, float, bool, bool, dict[str, Any]]:
        # A NumPy integer, as vector environments send it, hashes slower in JoypadSpace's table.
        action = int(action)
        total = 0.0
        for _ in range(self._frame_skip):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        # A new array each step: the one before may still be kept as a final observation.
        stack = np.empty_like(self._stack)
        stack[:-1] = self._stack[1:]
        stack[-1] = self._picture()
        self._stack = stack
        return stack, total, terminated, truncated, _trim(info)

    def _picture(self) -> U8:
        self._console.observation("grayscale", self._grey)
        self._grey[: self._hud_rows] = 0
        picture: U8 = cv2.resize(self._grey, self._width_height, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]  # cv2 types every image as any dtype
        return picture


def make_env(
    level: str,
    frame_skip: int = 4,
    size: tuple[int, int] = (84, 84),
    stack: int = 4,
    actions: str = "SIMPLE",
    hud_rows: int = 32,
) -> gym.Env[U8, int]:
    """The stack for ``level`` ("world-stage"); observations are uint8 [stack, height, width].

    An episode ends with the life or the level; rewards are gym-super-mario-bros' own, summed over the
    skipped frames. Raises ``KeyError`` for an unknown action preset and gymnasium's own error for an
    unknown level.
    """
    # One environment per process is the parallelism here; cv2's own threads would fight over the cores.
    cv2.setNumThreads(1)
    console = gym_super_mario_bros.make(f"SuperMarioBros-{level}-v0")
    return MarioPicture(JoypadSpace(console, PRESETS[actions]), frame_skip, size, stack, hud_rows)


def _trim(info: dict[str, Any]) -> dict[str, Any]:
    return {key: info[key] for key in KEPT_INFO}
