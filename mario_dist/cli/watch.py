"""mario-dist watch"""

import dataclasses
import json
from typing import Annotated

import typer


def watch_command(
    run: Annotated[str, typer.Argument(help="A run's id, a unique beginning of it, or 'latest'.")] = "latest",
    once: Annotated[bool, typer.Option(help="Show it as it is now, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document of the run as it is now, and end.")
    ] = False,
) -> None:
    """Follow a run that trains elsewhere: in another terminal, or on another machine with the same run store.

    Example: mario-dist watch latest
    """
    from mario_dist.config import parse
    from mario_dist.errors import UserError
    from mario_dist.report.watch import look, watch
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        row = store.get_run(run)
        if as_json:
            progress = look(store, row, parse(row.config))
            if progress is None:
                raise UserError(f"{row.id} has not reported yet")
            shown = {**dataclasses.asdict(progress), "eta_s": progress.eta_s, "status": row.status}
            print(json.dumps({"id": row.id, **shown}))
            return
        try:
            row = watch(store, row, once=once)
        except KeyboardInterrupt:
            return  # the training goes on
    typer.echo(f"{row.status}: {row.id} at {row.agent_steps:,} agent steps", err=True)
