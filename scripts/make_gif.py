"""Make docs/mario.gif: a TARGET's first episode that takes the flag, else its furthest.

uv run python scripts/make_gif.py TARGET docs/mario.gif --episodes 10
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mario_dist.cli.play import play_episodes
from mario_dist.cli.target import load_policy
from mario_dist.types import U8

EVERY = 4
"""Of 60 frames a second, 15 are kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    policy = load_policy(arguments.target)
    network, config = policy.network, policy.config
    best_x, best = -1, []
    for seed in range(arguments.episodes):
        frames: list[U8] = []

        def keep(rgb: U8, frames: list[U8] = frames) -> bool:
            frames.append(rgb)
            return True

        (episode,) = play_episodes(network, config.env, 1, seed, False, keep)
        print(f"seed {seed}: {episode.end} at x {episode.x_pos_max}")
        if episode.x_pos_max > best_x:
            best_x, best = episode.x_pos_max, frames
        if episode.flag_get:
            break
    kept = best[::EVERY][: int(arguments.seconds * 60 / EVERY)]
    # One palette for all frames: the game has few colours, and the file stays small.
    palette = Image.fromarray(np.concatenate(kept[:: max(1, len(kept) // 8)])).quantize(32)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in kept]
    images[0].save(
        arguments.out,
        save_all=True,
        append_images=images[1:],
        duration=1000 * EVERY // 60,
        loop=0,
        optimize=True,
    )
    print(f"{arguments.out}: {len(images)} frames, {arguments.out.stat().st_size // 1024} KiB, x {best_x}")


if __name__ == "__main__":
    main()
