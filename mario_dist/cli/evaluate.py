"""mario-dist eval"""

import dataclasses
import json
from typing import Annotated

import typer

from mario_dist.cli.options import Rom


def evaluate_command(
    target: Annotated[
        str, typer.Argument(help="A run id, 'latest', a checkpoint's path, or baseline:random.")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per level.")] = 100,
    noop_max: Annotated[int, typer.Option(min=0, help="Random no-op frames at an episode's start.")] = 30,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    greedy: Annotated[bool, typer.Option(help="Take the likeliest action instead of sampling.")] = False,
    levels: Annotated[
        str | None, typer.Option(help="Levels such as 1-1,1-2; by default those trained on.")
    ] = None,
    rom: Rom = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Judge a trained agent: clear rate with its 95 % interval, and how far it gets.

    Example: mario-dist eval latest --episodes 100 --noop-max 30 --seed 0
    """
    import torch

    from mario_dist import machine
    from mario_dist.cli.target import load_policy
    from mario_dist.config import override
    from mario_dist.evaluation import EvalProtocol, evaluate

    network, config, path = load_policy(target, rom)
    if levels is not None:
        tree = {"env": {**dataclasses.asdict(config.env), "levels": levels.split(",")}}
        config = dataclasses.replace(config, env=override(tree, ()).env)
    protocol = EvalProtocol(config.env.levels, episodes, noop_max, seed, greedy)
    torch.set_num_threads(1)  # the emulators take the cores
    report = evaluate(network, config.env, protocol, machine.cores())
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "checkpoint": path}))
        return
    low, high = report.clear_rate_ci
    x = report.x_pos
    print(f"checkpoint   {path}")
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    print(f"cleared      {report.clear_rate:.1%} of {report.episodes} episodes, {interval}")
    print(f"x-position   mean {x['mean']:.0f}, median {x['median']:.0f}, interquartile mean {x['iqm']:.0f}")
    print(f"ended by     {', '.join(f'{end} {count}' for end, count in sorted(report.ends.items()))}")
    for level, result in report.per_level.items():
        print(f"  {level}  cleared {result['clear_rate']:.1%}, mean x {result['x_pos_mean']:.0f}")
    print(f"time         {report.seconds:.1f} s")
