"""mario-dist bench store | outage: ``bench_app`` has all benchmarks once this is imported"""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mario_dist.cli.bench import ConfigArguments, Json, bench_app, print_machine

__all__ = ["bench_app"]


@bench_app.command()
def store(
    rows: Annotated[int, typer.Option(min=100, help="Episodes in the run store.")] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="Runs that they are spread over.")] = 100,
    postgres: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An empty database, to be filled; by default one of its own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rows per second into the run store, and milliseconds of what is asked of it, on SQLite and PostgreSQL.

    Seven minutes with a million episodes, half of them to fill the databases.

    Example: mario-dist bench store --rows 100000 --runs 10 --json
    """
    from mario_dist.bench.store import bench_store
    from mario_dist.store import normalise_url

    if postgres is not None and not normalise_url(postgres).startswith("postgresql"):
        raise typer.BadParameter("--postgres takes a URL such as postgresql://USER:PASSWORD@HOST/NAME")
    document = bench_store(rows, runs, postgres, lambda text: typer.echo(text, err=True))
    if as_json:
        print(json.dumps(document))
        return
    print_machine(document)
    names = [name for name in ("sqlite", "postgres") if name in document]
    print(f"{rows:,} episodes of {runs:,} runs")
    table = Table("episodes/s", *names, box=None)
    rates = {"rows_per_s": "1,000 in a transaction", "writer_rows_per_s": "through the journal"}
    for rate, title in rates.items():
        table.add_row(title, *(f"{document[name][rate]:,.0f}" for name in names))
    Console().print(table)
    asked = {"queries_ms": "one of the runs", "one_run_queries_ms": f"a run of {rows:,} episodes"}
    for key, title in asked.items():
        Console().print(_queries(title, {name: document[name][key] for name in names}))


def _queries(title: str, of: dict[str, Any]) -> Table:
    """Milliseconds of each question to each database."""
    table = Table(title, *(column for name in of for column in (f"{name} ms", "max")), box=None)
    for question in next(iter(of.values())):
        spreads = [queries[question] for queries in of.values()]
        table.add_row(question, *(f"{spread[key]:,.1f}" for spread in spreads for key in ("median", "max")))
    return table


@bench_app.command()
def outage(
    arguments: ConfigArguments = None,
    down: Annotated[float, typer.Option(min=0.1, help="Seconds without the database.")] = 30.0,
    around: Annotated[float, typer.Option(min=0.1, help="Seconds of training before, and after.")] = 20.0,
    as_json: Json = False,
) -> None:
    """What a training does while its PostgreSQL is away: its speed, and whether every episode is there once.

    With a server of its own, which the dev dependencies bring. Exit code 1 where an episode is missing.

    Example: mario-dist bench outage configs/impala-1-1.yaml --down 60
    """
    from mario_dist.bench.outage import bench_outage
    from mario_dist.cli.config import read_config

    document = bench_outage(
        read_config(arguments or []), down, around, lambda text: typer.echo(text, err=True)
    )
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        speeds = ", ".join(f"{rate:,.0f} {when}" for when, rate in document["steps_per_s"].items())
        print(f"agent steps/s: {speeds} {document['down_s']:.1f} s without the database")
        print(f"{document['ratio']:.1%} of the speed before and after")
        found = ", ".join(f"{count:,} {name}" for name, count in document["episodes"].items())
        print(f"episodes: {found}; all there {document['recovered_s']:.1f} s after its return")
    if not document["exactly_once"]:
        raise typer.Exit(1)
