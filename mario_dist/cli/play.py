"""mario-dist play"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mario_dist.cli.options import TARGET_HELP, Rom
from mario_dist.errors import UserError

if TYPE_CHECKING:
    from mario_dist.report.film import Look, Show
    from mario_dist.system.judging import Policy
    from mario_dist.types import U8, Episode

DEFAULT_CLIP = Path("clip.mp4")


def play(
    target: Annotated[
        str,
        typer.Argument(help=TARGET_HELP),
    ],
    out: Annotated[Path | None, typer.Option(help="Write an MP4 instead of opening a window.")] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="By default 1, or one in each lane.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest action instead of sampling.")] = False,
    noop_max: Annotated[int, typer.Option(min=0, help="Random no-op frames at an episode's start.")] = 30,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Show buttons, x-position and value under the picture.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLUMNS", help="Many lanes at once, such as 4x4.")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(min=1, help="Play so many episodes and show the best one, with the overlay."),
    ] = None,
    rom: Rom = None,
) -> None:
    """Watch an agent play: in a window, or as an MP4 of every emulator frame.

    Without a display the clip goes to clip.mp4. In a window, q or Esc ends it.

    Example: mario-dist play latest --overlay --grid 4x4 --out clip.mp4
    """
    from mario_dist.cli.target import load_policy
    from mario_dist.report.film import Look

    rows, columns = (1, 1) if grid is None else parse_grid(grid)
    if best_of is not None and (grid is not None or episodes is not None):
        raise UserError("--best-of shows one episode: leave out --grid and --episodes")
    episodes = rows * columns if episodes is None else episodes
    if episodes < rows * columns:
        raise UserError(f"--grid {grid} shows {rows * columns} lanes: ask for as many --episodes, or more")
    policy = load_policy(target, rom)
    if "@" in target and policy.source != target:
        typer.echo(f"{target} is {policy.source}", err=True)
    if policy.config.env.kind != "mario":
        raise UserError(f"{policy.source} plays the probe environment, which has no picture to show")
    look = Look(rows, columns, overlay, label_of(policy))
    with opened(out, f"mario-dist {policy.source}") as show:
        if best_of is None:
            played = _play(policy, look, episodes, seed, greedy, noop_max, show)
        else:
            played = _play_best(policy, look.label, best_of, seed, greedy, noop_max, show)
    for episode in played:
        where = f"{episode.end} at x {episode.x_pos_max} after {episode.length} steps"
        print(f"{episode.level}: {where}, score {episode.score}")


def parse_grid(text: str) -> tuple[int, int]:
    """Rows and columns of ``ROWSxCOLUMNS``. Raises ``UserError`` for anything else or more than 64 lanes."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and 1 <= int(rows) * int(columns) <= 64):
        raise UserError(f"--grid {text}: write ROWSxCOLUMNS, such as 4x4, of 64 lanes at most")
    return int(rows), int(columns)


def label_of(policy: "Policy") -> str:
    """Whose play it is."""
    if policy.run_id is None or policy.agent_steps is None:
        return policy.source
    return f"{policy.run_id} at {policy.agent_steps:,} steps"


@contextmanager
def opened(out: Path | None, title: str) -> "Iterator[Show]":
    """Where pictures go: a file, which is announced once it is complete, or a window."""
    from mario_dist.report.video import VideoWriter, Window, has_display

    if out is None and not has_display():
        out = DEFAULT_CLIP
        typer.echo(f"no display here: writing {out}", err=True)
    if out is None:
        with Window(title, scale=1) as window:
            yield window.show
        return
    with VideoWriter(out, fps=60, scale=1) as video:

        def keep(picture: "U8") -> bool:
            video.add(picture)
            return True

        yield keep
    print(f"{out}: {video.frame_count} frames")


def _play(
    policy: "Policy", look: "Look", episodes: int, seed: int, greedy: bool, noop_max: int, show: "Show"
) -> "list[Episode]":
    import torch

    from mario_dist import machine
    from mario_dist.report.film import film_play

    torch.set_num_threads(1)  # of so few lanes it is the quickest, and the cores draw and encode
    return film_play(
        policy.network,
        dataclasses.replace(policy.config.env, noop_max=noop_max),
        look,
        episodes=episodes,
        seed=seed,
        greedy=greedy,
        show=show,
        threads=min(look.lanes, machine.cores()),
    )


def _play_best(
    policy: "Policy", label: str, best_of: int, seed: int, greedy: bool, noop_max: int, show: "Show"
) -> "list[Episode]":
    """Play an evaluation's protocol and show the best of its episodes."""
    from mario_dist.evaluation import EvalProtocol, best_played
    from mario_dist.report.film import film_episode
    from mario_dist.system.judging import judge

    levels = policy.config.env.levels
    protocol = EvalProtocol(levels, episodes=best_of, noop_max=noop_max, seed=seed, greedy=greedy)
    best = best_played(judge(policy, protocol).per_level)
    episode = film_episode(policy.network, policy.config.env, protocol, best, label, show)
    return [] if episode is None else [episode]
