"""mario-dist train"""

import dataclasses
import json
from contextlib import ExitStack
from typing import Annotated

import typer

from mario_dist.cli.options import Rom
from mario_dist.errors import UserError
from mario_dist.paths import check_run_id, new_run_id, runs_dir


def train_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A YAML file, by default configs/ppo-1-1.yaml, and overrides of its keys.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run: its id, 'latest', or one of its checkpoints."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id",
            metavar="ID",
            help="Name the run: begin it, or go on with it if it has a checkpoint; do nothing once done.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Begin with the network of a checkpoint, zoo:1-1 or models:/NAME@ALIAS."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="auto|local|HOST", help="Train on Ray: join a cluster, or start Ray here."),
    ] = None,
    rom: Rom = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Train an agent, or go on training one.

    Example: mario-dist train configs/ppo-1-1.yaml total_steps=500000 algo.gamma=0.95
    """
    from mario_dist.cli.config import read_config
    from mario_dist.cli.target import fetch_run, newest_state, read_state, resume_state
    from mario_dist.registry import default_tracking_uri
    from mario_dist.storage import default_storage
    from mario_dist.store import default_url
    from mario_dist.system.copies import Copies
    from mario_dist.system.run import finished_before, resume_config, run_training
    from mario_dist.system.stop import interrupted_by_sigterm

    def announce(text: str) -> None:
        typer.echo(text, err=True)

    if rom is not None:
        arguments = [*(arguments or []), f"env.rom={json.dumps(str(rom))}"]
    found = None
    if resume is not None:
        if init is not None or run_id is not None:
            raise UserError("--resume goes on with a run as it is; leave out --init and --run-id")
        if arguments and "=" not in arguments[0]:
            raise UserError("--resume takes the run's own configuration; give only key=value overrides")
        found = resume_state(resume)
        config = resume_config(found[0], arguments or [])
    else:
        config = read_config(arguments or [])
    network, network_from = (None, "") if init is None else read_state(init)
    if run_id is not None:
        check_run_id(run_id)
    name = str(found[0].meta["run_id"]) if found is not None else run_id or new_run_id(config.name)
    storage = default_storage()
    with ExitStack() as stack:
        stack.enter_context(interrupted_by_sigterm())
        result, copies = None, None
        if storage is not None:
            copies = Copies(storage, stack.enter_context(storage.held(name, announce)))
            if resume is not None and found is not None:
                # Another machine may have gone on with it, up to now.
                fetch_run(name)
                found = resume_state(resume)
        if run_id is not None and (found := newest_state(run_id, announce)) is not None:
            result = finished_before(config, found[0], runs_dir())
            announce(f"{run_id} goes on" if result is None else f"{run_id} is finished: nothing to do")
        state, checkpoint = found or (None, None)
        if result is None:
            result = run_training(
                config,
                runs_dir(),
                run_id=None if resume is not None else name,
                store_url=default_url(),
                tracking_uri=default_tracking_uri(),
                address=address,
                resume=state,
                resumed_from=checkpoint,
                init=network if state is None else None,
                init_from=network_from,
                copies=copies,
                announce=announce,
            )
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "directory": str(result.directory)}))
        return
    print(f"{result.outcome}: {result.run_id} at {result.agent_steps:,} agent steps")
    if result.alarm is not None:
        print(f"alarm:   {result.alarm}")
    if result.outcome == "stopped":
        print(f"go on:   mario-dist train --resume {result.run_id}")
    print(f"judge:   mario-dist eval {result.run_id}")
    print(f"watch:   mario-dist play {result.run_id} --out clip.mp4")
