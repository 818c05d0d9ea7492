"""mario-dist bench load: ``bench_app`` has all benchmarks once this is imported"""

import json
from typing import Annotated

import typer

from mario_dist.cli.bench import ConfigArguments, Json, print_machine
from mario_dist.cli.bench_chaos import bench_app

__all__ = ["bench_app"]

_DEFAULT = "impala-1-1.yaml"


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

    config = read_config(arguments or [], _DEFAULT)
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
