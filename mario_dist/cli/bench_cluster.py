"""mario-dist bench cluster: ``bench_app`` has all benchmarks once this is imported"""

import json
from typing import Annotated

import typer

from mario_dist.cli.bench import ConfigArguments, Json, print_machine
from mario_dist.cli.bench_store import bench_app

__all__ = ["bench_app"]

_DEFAULT = "impala-1-1.yaml"


@bench_app.command()
def cluster(
    arguments: ConfigArguments = None,
    around: Annotated[float, typer.Option(min=1.0, help="Seconds of training around each event.")] = 30.0,
    cores: Annotated[int, typer.Option(min=1, help="Of the node that is killed.")] = 1,
    as_json: Json = False,
) -> None:
    """What a training does when its Ray cluster loses a node, and when it gets one: all on this machine.

    Exit code 1 where an episode is missing or there twice.

    Example: mario-dist bench cluster configs/impala-1-1.yaml rollout.lanes=8 --around 20
    """
    from mario_dist.bench.cluster import bench_cluster
    from mario_dist.cli.config import read_config

    config = read_config(arguments or [], _DEFAULT)
    document = bench_cluster(config, around, cores, lambda text: typer.echo(text, err=True))
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        print(
            "agent steps/s: "
            + ", ".join(f"{rate:,.0f} {when}" for when, rate in document["steps_per_s"].items())
        )
        lost = f"{document['lost_unrolls']} unrolls lost"
        print(f"recovered {document['recovered_s']:.1f} s after the death of the node, {lost}")
        print(f"its successor's actors joined {document['joined_s']:.1f} s after it was there")
        print("episodes: " + ", ".join(f"{count:,} {name}" for name, count in document["episodes"].items()))
    if not document["exactly_once"]:
        raise typer.Exit(1)
