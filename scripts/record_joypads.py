"""Record what an agent presses from its level's start to the flag, one joypad byte a frame.

    uv run python scripts/record_joypads.py TARGET mario_dist/bench/play-1-1.joypads

`mario-dist bench parity` plays such a recording. It goes on from `level_start`, without random no-ops;
episodes are tried until one takes the flag.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from mario_dist.cli.target import load_policy
from mario_dist.env import MarioVectorEnv
from mario_dist.env.actions import joypad_bytes
from mario_dist.evaluation import Player
from mario_dist.types import EnvStep

TRIES = 200


class RecordingEnv(MarioVectorEnv):
    """One lane that notes its joypad bytes."""

    pressed = b"\0"  # of the frame that an episode's first picture takes

    def step(self, action_N: np.ndarray) -> EnvStep:
        joypad = joypad_bytes(self._config.actions)[action_N[0]]
        self.pressed += bytes([joypad]) * self._config.frame_skip
        return super().step(action_N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    policy = load_policy(arguments.target)
    network, config, path = policy.network, policy.config, policy.source
    for seed in range(TRIES):
        env = RecordingEnv(replace(config.env, noop_max=0), 1, (seed,))
        player = Player(network, env, seed=seed, greedy=False)
        while not (ended := player.step().ended):
            pass
        env.close()
        if ended[0].flag_get:
            arguments.out.write_bytes(env.pressed)
            print(f"{arguments.out}: {len(env.pressed)} frames of {path} to the flag of {ended[0].level}")
            return
    raise SystemExit(f"none of {TRIES} episodes took the flag")


if __name__ == "__main__":
    main()
