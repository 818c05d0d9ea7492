"""mario-dist bench cluster | chaos | load: ``bench_app`` has all benchmarks once this is imported"""

import json
import math
from typing import Annotated

import typer

from mario_dist.cli.bench import ConfigArguments, Json, print_machine
from mario_dist.cli.bench_store import bench_app
from mario_dist.errors import UserError

__all__ = ["bench_app"]

_APEX = "apex-1-1.yaml"
_IMPALA = "impala-1-1.yaml"


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
    from mario_dist.system.stop import interrupted_by_sigterm

    config = read_config(arguments or [], _IMPALA)
    with interrupted_by_sigterm():  # nothing that it started may stay
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


@bench_app.command()
def chaos(
    arguments: ConfigArguments = None,
    faults: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of actor,shard,learner,driver,node,pause,postgres,mlflow,disk,clock; by default all.",
        ),
    ] = None,
    each: Annotated[int, typer.Option(min=1, help="How often each of them.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="The same one gives the same order, moments and pauses.")
    ] = 0,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.1, help="After the training's first report; no fault begins later.", show_default="no end"
        ),
    ] = math.inf,
    as_json: Json = False,
) -> None:
    """What a training on a Ray cluster of this machine bears: processes and nodes that are killed or paused.

    And servers that go, a full disk, a clock that jumps. Progress goes to stderr. Exit code 1 where the run
    does not come back by itself or by the same command, or its books do not balance.

    Example: mario-dist bench chaos --faults actor,learner,driver --each 5 --seed 1
    """
    from mario_dist.bench.chaos import KINDS, bench_chaos
    from mario_dist.cli.config import read_config
    from mario_dist.system.stop import interrupted_by_sigterm

    config = read_config(arguments or [], _APEX)
    kinds = list(KINDS) if faults is None else [kind.strip() for kind in faults.split(",")]
    with interrupted_by_sigterm():  # nothing that it started may stay
        document = bench_chaos(config, kinds, each, seed, lambda text: typer.echo(text, err=True), minutes)
    books = document["books"]
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        for kind, row in document["faults"].items():
            starts = f", started again {row['starts']} times" if row["starts"] else ""
            print(
                f"{kind:9s} {row['times']:3d} times: recovered after {row['median_s']:.1f} s (median),"
                f" {row['most_s']:.1f} s (most){starts}"
            )
        done = sum(row["times"] for row in document["faults"].values())
        lost = document["lost"]
        print(f"{done} of {document['planned']} faults were done")
        print(
            f"lost: {lost['actor_restarts']:,} unrolls in the making, {lost['lost_unrolls']:,} on their way,"
            f" {lost['replay_lost']:,} transitions of the replay"
        )
        print("episodes: " + ", ".join(f"{count:,} {name}" for name, count in books["episodes"].items()))
        print(
            f"agent steps: {books['agent_steps']:,}, of them in ended episodes {books['steps_of_episodes']:,}"
        )
        wrong = ", ".join(books["wrong"])
        print(f"the books do not balance: {wrong}" if wrong else "the books balance")
    if document["failed"]:
        raise UserError(document["failed"])
    if books["wrong"]:
        raise typer.Exit(1)


@bench_app.command()
def load(
    arguments: ConfigArguments = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Of training.")] = 60.0,
    times: Annotated[int, typer.Option(min=1, help="Rollout actors for every core.")] = 4,
    as_json: Json = False,
) -> None:
    """Whether a training on a machine with too few cores keeps its memory, its queue and its object store.

    Exit code 1 where it does not.

    Example: mario-dist bench load rollout.lanes=4 --minutes 10
    """
    from mario_dist.bench.load import bench_load
    from mario_dist.cli.config import read_config
    from mario_dist.system.stop import interrupted_by_sigterm

    config = read_config(arguments or [], _IMPALA)
    with interrupted_by_sigterm():  # nothing that it started may stay
        document = bench_load(config, minutes, times, lambda text: typer.echo(text, err=True))
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        for kind, row in document["processes"].items():
            print(
                f"{kind:32s} {row['number']:3d} x {row['private_mib']:7.1f} MiB,"
                f" {row['growth_mib_per_h']:+8.1f} MiB/h{'' if row['steady'] else '  grows'}"
            )
        queue = document["queue_depth"]
        print(f"queue: {queue['second']:.1f} unrolls in the second quarter, {queue['last']:.1f} in the last")
        print(f"object store: {document['spilled_bytes']:,} bytes on the disk")
    if not all(document["steady"].values()):
        raise typer.Exit(1)
