"""mario-dist models"""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

models_app = typer.Typer(no_args_is_help=True, help="Trained policies, ready to play.")


@models_app.callback()
def models() -> None:
    """Keeps ``list`` a command of its own while it is the only one."""


@models_app.command("list")
def list_command(
    # All there is so far, so it chooses nothing yet.
    zoo: Annotated[bool, typer.Option("--zoo", help="Those that come with the package.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List trained policies, with what a protocol said of each.

    Example: mario-dist models list --zoo
    """
    from mario_dist.zoo import PREFIX, zoo_entry, zoo_names

    entries = {PREFIX + name: zoo_entry(name) for name in zoo_names()}
    if as_json:
        print(json.dumps([{"target": target, **entry} for target, entry in entries.items()]))
        return
    table = Table(
        "policy", "algo", "levels", "protocol", "cleared", "95 %", "agent steps", "trained", box=None
    )
    for target, entry in entries.items():
        report, config = entry["evaluation"], entry["config"]
        low, high = report["clear_rate_ci"]
        table.add_row(
            target,
            config["algo"]["name"],
            ",".join(config["env"]["levels"]),
            report["protocol"]["name"],
            f"{report['clear_rate']:.0%} of {report['episodes']}",
            f"{low:.0%} to {high:.0%}",
            f"{entry['counters']['agent_steps']:,}",
            f"{entry['wall_s'] / 60:.0f} min",
        )
    Console().print(table)
    print("play one: uv run mario-dist play zoo:NAME")
