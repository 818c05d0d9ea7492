"""mario-dist eval"""

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mario_dist.cli.options import TARGET_HELP, Rom
from mario_dist.errors import UserError

if TYPE_CHECKING:
    from mario_dist.evaluation import EvalProtocol
    from mario_dist.system.judging import Policy
    from mario_dist.types import EvalReport

Target = Annotated[
    str,
    typer.Argument(help=TARGET_HELP),
]
Protocol = Annotated[
    str,
    typer.Option(help="jitter-30, jitter-30-greedy, fixed-start, fixed-start-greedy or sticky-25."),
]
Episodes = Annotated[int, typer.Option(min=1, help="Episodes per level.")]
Seed = Annotated[int, typer.Option(min=0)]
Levels = Annotated[
    str | None, typer.Option(help="Levels such as 1-1,1-2, or all; by default those trained on.")
]
_SHOWN_PLACES = 5


def evaluate_command(
    target: Target,
    protocol: Protocol = "jitter-30",
    episodes: Episodes = 100,
    seed: Seed = 0,
    levels: Levels = None,
    noop_max: Annotated[
        int | None, typer.Option(min=0, help="Random no-op frames at an episode's start.", show_default=False)
    ] = None,
    sticky: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.99, help="Chance that an action repeats.", show_default=False),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option("--greedy/--sampled", help="The likeliest action, or a sample.", show_default=False),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Agent steps of an episode at most.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="auto|local|HOST", help="Play on Ray: join a cluster, or start Ray here."),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log/--no-log", help="Keep the report in run store and MLflow.")
    ] = True,
    rom: Rom = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Judge an agent by a fixed protocol: clear rate with its 95 % interval, how far it gets, where it dies.

    The options after --levels change the protocol, which is then called custom.

    Example: mario-dist eval latest --episodes 100 --seed 0 --levels all
    """
    from mario_dist.cli.target import load_policy
    from mario_dist.system.judging import judge

    policy = load_policy(target, rom)
    changes: dict[str, Any] = {
        "noop_max": noop_max,
        "sticky": sticky,
        "greedy": greedy,
        "max_steps": max_steps,
    }
    asked = make_protocol(policy, protocol, episodes, seed, levels)
    asked = dataclasses.replace(asked, **{k: v for k, v in changes.items() if v is not None})
    report = judge(policy, asked, address=address)
    if log:
        keep(policy, report)
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "checkpoint": policy.source}))
        return
    print_report(dataclasses.asdict(report), policy.source)


def make_protocol(
    policy: "Policy", name: str, episodes: int, seed: int, levels: str | None
) -> "EvalProtocol":
    """The named protocol for a policy; by default on the levels that it was trained on."""
    from mario_dist.env import LEVELS
    from mario_dist.evaluation import SETTINGS, EvalProtocol

    if name not in SETTINGS:
        raise UserError(f"there is no protocol {name!r}; protocols are {', '.join(SETTINGS)}")
    named = policy.config.env.levels
    if levels is not None:
        named = LEVELS if levels == "all" else tuple(levels.split(","))
    for level in named:
        if level not in LEVELS:
            raise UserError(f"there is no level {level!r}; levels are 1-1 to 8-4, or all")
    return EvalProtocol(tuple(dict.fromkeys(named)), episodes=episodes, seed=seed, **SETTINGS[name])


def keep(policy: "Policy", report: "EvalReport") -> None:
    """Into the run store and MLflow, where the policy is of a run that is there."""
    from mario_dist.registry import default_tracking_uri
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.judging import remember

    if policy.run_id is None:
        return
    with RunStore(default_url()) as store:
        if remember(policy, report, store, default_tracking_uri()) is None:
            typer.echo(f"not kept: run {policy.run_id} is not in this run store", err=True)


def print_report(report: Mapping[str, Any], source: str) -> None:
    """For people."""
    low, high = report["clear_rate_ci"]
    x, protocol = report["x_pos"], report["protocol"]
    per_level = report["per_level"]
    print(f"judged       {source}")
    print(f"protocol     {describe(protocol)}")
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    print(f"cleared      {report['clear_rate']:.1%} of {report['episodes']} episodes, {interval}")
    iqm_low, iqm_high = x["iqm_ci"]
    print(
        f"x-position   mean {x['mean']:.0f}, median {x['median']:.0f},"
        f" interquartile mean {x['iqm']:.0f} ({iqm_low:.0f} to {iqm_high:.0f})"
    )
    print(f"ended by     {', '.join(f'{end} {count}' for end, count in sorted(report['ends'].items()))}")
    if len(per_level) > 1:
        _print_levels(per_level)
    else:
        (result,) = per_level.values()
        if clear_s := result["seconds_to_clear"]:
            print(f"to the flag  {clear_s['median']:.1f} s of play (median), best {clear_s['best']:.1f} s")
        for place in result["failures"][:_SHOWN_PLACES]:
            where = f"x {place['x_from']} to {place['x_to']}"
            print(f"  {place['end']:6} at {where:14} {place['episodes']:4} episodes")
    print(f"time         {report['seconds']:.1f} s")


def describe(protocol: Mapping[str, Any]) -> str:
    """A protocol in a line."""
    levels = protocol["levels"]
    shown = ",".join(levels) if len(levels) <= 4 else f"{len(levels)} levels"
    policy = "likeliest action" if protocol["greedy"] else "sampled actions"
    sticky = f", sticky {protocol['sticky']:g}" if protocol["sticky"] else ""
    return (
        f"{protocol['name']} v{protocol['version']}: {shown}, {protocol['episodes']} episodes each,"
        f" 0-{protocol['noop_max']} no-ops, {policy}{sticky}, seed {protocol['seed']}"
    )


def _print_levels(per_level: Mapping[str, Any]) -> None:
    """Clear rates as a map, a world in each row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(level: str) -> Text:
        if level not in per_level:
            return Text("-", style="dim")
        rate = per_level[level]["clear_rate"]
        colour = f"rgb({round(200 * (1 - rate))},{round(60 + 100 * rate)},60)"
        return Text(f"{rate:4.0%}  x {per_level[level]['x_pos_mean']:5.0f}", style=f"on {colour}")

    worlds = sorted({level.split("-")[0] for level in per_level})
    table = Table("world", *(f"stage {stage}" for stage in range(1, 5)), box=None)
    for world in worlds:
        table.add_row(world, *(cell(f"{world}-{stage}") for stage in range(1, 5)))
    Console().print(table)
