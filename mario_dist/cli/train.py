"""mario-dist train"""

import dataclasses
import json
from typing import Annotated

import typer

from mario_dist.cli.options import Rom
from mario_dist.errors import UserError
from mario_dist.paths import runs_dir


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
    from mario_dist.cli.target import read_state, resume_state
    from mario_dist.registry import default_tracking_uri
    from mario_dist.store import default_url
    from mario_dist.system.run import resume_config, run_training

    if rom is not None:
        arguments = [*(arguments or []), f"env.rom={json.dumps(str(rom))}"]
    state, checkpoint = None, None
    if resume is not None:
        if init is not None:
            raise UserError("--resume goes on with the run's own network; leave out --init")
        if arguments and "=" not in arguments[0]:
            raise UserError("--resume takes the run's own configuration; give only key=value overrides")
        state, checkpoint = resume_state(resume)
        config = resume_config(state, arguments or [])
    else:
        config = read_config(arguments or [])
    network, network_from = (None, "") if init is None else read_state(init)
    result = run_training(
        config,
        runs_dir(),
        store_url=default_url(),
        tracking_uri=default_tracking_uri(),
        address=address,
        resume=state,
        resumed_from=checkpoint,
        init=network,
        init_from=network_from,
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
