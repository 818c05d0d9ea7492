"""mario-dist bench chaos: ``bench_app`` has all benchmarks once this is imported"""

import json
from typing import Annotated

import typer

from mario_dist.cli.bench import ConfigArguments, Json, print_machine
from mario_dist.cli.bench_cluster import bench_app

__all__ = ["bench_app"]

_DEFAULT = "apex-1-1.yaml"


@bench_app.command()
def chaos(
    arguments: ConfigArguments = None,
    faults: Annotated[
        str | None, typer.Option(metavar="LIST", help="Such as actor,driver,postgres; by default all.")
    ] = None,
    each: Annotated[int, typer.Option(min=1, help="How often each of them.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of their order, moments and victims.")] = 0,
    as_json: Json = False,
) -> None:
    """What a training on a Ray cluster of this machine bears: killed processes, lost servers, a full disk.

    Exit code 1 where the run does not come back by itself or the same command, or its books do not balance.

    Example: mario-dist bench chaos --faults actor,learner,driver --each 5 --seed 1
    """
    from mario_dist.bench.chaos import KINDS, bench_chaos
    from mario_dist.cli.config import read_config
    from mario_dist.system.stop import interrupted_by_sigterm

    config = read_config(arguments or [], _DEFAULT)
    kinds = [kind.strip() for kind in faults.split(",")] if faults else list(KINDS)
    with interrupted_by_sigterm():  # nothing that it started may stay
        document = bench_chaos(config, kinds, each, seed, lambda text: typer.echo(text, err=True))
    books = document["books"]
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        for kind, row in document["faults"].items():
            ended = f", started again {row['ended']} times" if row["ended"] else ""
            print(
                f"{kind:9s} {row['times']:3d} times: recovered after {row['median_s']:.1f} s (median),"
                f" {row['most_s']:.1f} s (most){ended}"
            )
        print(f"{document['lost_unrolls']} unrolls lost")
        print("episodes: " + ", ".join(f"{count:,} {name}" for name, count in books["episodes"].items()))
        print(
            f"agent steps: {books['agent_steps']:,}, of them in ended episodes {books['steps_of_episodes']:,}"
        )
        wrong = [name for name in ("every_episode_once", "steps_once", "versions_grow") if not books[name]]
        print("the books balance" if not wrong else f"the books do not balance: {', '.join(wrong)}")
    if not books["balanced"]:
        raise typer.Exit(1)
