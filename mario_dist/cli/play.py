"""mario-dist play"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mario_dist.cli.options import Rom
from mario_dist.errors import UserError

if TYPE_CHECKING:
    from mario_dist.env import EnvConfig
    from mario_dist.nets import Network
    from mario_dist.types import U8, Episode

DEFAULT_CLIP = Path("clip.mp4")


def play(
    target: Annotated[
        str, typer.Argument(help="A run id, 'latest', a checkpoint's path, or baseline:random.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write an MP4 instead of opening a window.")] = None,
    episodes: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest action instead of sampling.")] = False,
    noop_max: Annotated[int, typer.Option(min=0, help="Random no-op frames at an episode's start.")] = 30,
    rom: Rom = None,
) -> None:
    """Watch an agent play: in a window, or as an MP4 of every emulator frame.

    Without a display the clip goes to clip.mp4.

    Example: mario-dist play latest --out clip.mp4
    """
    from mario_dist.cli.target import load_policy
    from mario_dist.report.video import VideoWriter, Window, has_display

    policy = load_policy(target, rom)
    network, config, path = policy.network, policy.config, policy.source
    if config.env.kind != "mario":
        raise UserError(f"{path} plays the probe environment, which has no picture to show")
    env = dataclasses.replace(config.env, noop_max=noop_max)
    if out is None and not has_display():
        out = DEFAULT_CLIP
        typer.echo(f"no display here: writing {out}", err=True)
    if out is None:
        with Window(f"mario-dist {path}") as window:
            played = play_episodes(network, env, episodes, seed, greedy, window.show)
    else:
        with VideoWriter(out, fps=60) as video:

            def keep(rgb: "U8") -> bool:
                video.add(rgb)
                return True

            played = play_episodes(network, env, episodes, seed, greedy, keep)
        print(f"{out}: {video.frame_count} frames")
    for episode in played:
        where = f"{episode.end} at x {episode.x_pos_max} after {episode.length} steps"
        print(f"{episode.level}: {where}, score {episode.score}")


def play_episodes(
    network: "Network",
    config: "EnvConfig",
    episodes: int,
    seed: int,
    greedy: bool,
    show: "Callable[[U8], bool]",
) -> "list[Episode]":
    """Play in one lane and ``show`` every emulator frame; it returns False to end early."""
    from mario_dist.emulator import Emulator
    from mario_dist.env import MarioVectorEnv
    from mario_dist.evaluation import Player

    watching = True

    def on_frame(lane: int, emulator: Emulator) -> None:
        nonlocal watching
        watching = watching and show(emulator.rgb())

    played: list[Episode] = []
    env = MarioVectorEnv(config, 1, (seed,), on_frame=on_frame)
    try:
        player = Player(network, env, seed=seed, greedy=greedy)
        while watching and len(played) < episodes:
            played += player.step().ended
    finally:
        env.close()
    return played
