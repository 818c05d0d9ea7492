"""mario-dist submit"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TextIO

import typer

from mario_dist.errors import UserError
from mario_dist.paths import check_run_id, new_run_id


def submit_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="As for train. The file lies in the working directory, or in the cluster's.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of Ray's dashboard; by default RAY_API_SERVER_ADDRESS says."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="ID", help="Name the run. Submitted again, it goes on."),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Is copied to the cluster, without what git ignores.")
    ] = Path("."),
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Set there too. No secrets: the dashboard shows them."),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the output until the run ends; Ctrl-C stops it.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as one JSON document.")] = False,
) -> None:
    """Train on a Ray cluster, as a job: it goes on when this machine does not.

    Example: mario-dist submit configs/impala-1-1-gpu.yaml rollout.actors=64 --run-id first
    """
    from mario_dist.cli.config import read_config
    from mario_dist.system.stop import interrupted_by_sigterm

    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    working_dir = working_dir.resolve()
    if not working_dir.is_dir():
        raise UserError(f"--working-dir {working_dir} is not a directory")
    arguments = _relative(arguments or [], working_dir)
    config = read_config(arguments, directory=working_dir)
    if run_id is not None:
        check_run_id(run_id)
    name = run_id or new_run_id(config.name)
    # It takes seconds to import.
    from mario_dist.system.ray_jobs import Jobs, passed_on, succeeded

    jobs = Jobs(url)
    command = ["mario-dist", "train", *arguments, "--address", "auto", "--run-id", name]
    variables = passed_on(env or [])
    status, ok, job = "SUBMITTED", True, None
    with interrupted_by_sigterm():
        try:
            job = jobs.submit(name, command, working_dir, variables)
            typer.echo(f"{name} is job {job} on {url}", err=True)
            ended = jobs.follow(job, _writer(sys.stderr if as_json else sys.stdout)) if follow else None
        except KeyboardInterrupt:
            if job is None:
                typer.echo(
                    f"whether {name} was submitted is not known: ray job list --address {url}", err=True
                )
                raise
            jobs.stop(job)
            typer.echo(f"{name} was asked to stop: it writes a checkpoint first", err=True)
            ended = jobs.follow(job, lambda text: None)
    if ended is not None:
        status, ok = str(ended.status.value), succeeded(ended)
        more = f"; the same command with --run-id {name} goes on" if status != "SUCCEEDED" else ""
        typer.echo(f"{name}: {status.lower()}{more}", err=True)
    if as_json:
        print(json.dumps({"run_id": name, "submission_id": job, "address": url, "status": status}))
    if not ok:
        raise typer.Exit(1)


def _writer(output: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        output.write(text)
        output.flush()

    return write


def _relative(arguments: list[str], working_dir: Path) -> list[str]:
    """The configuration's path as it is on the cluster. Raises ``UserError`` where it does not come along."""
    if not arguments or "=" in arguments[0]:
        return arguments
    path = Path(arguments[0]).resolve()
    if not path.is_file():
        return arguments  # the reader says so, or it is one that the package brings
    if not path.is_relative_to(working_dir):
        raise UserError(
            f"{arguments[0]} is not in the working directory {working_dir}, which is what is sent"
        )
    return [str(path.relative_to(working_dir)), *arguments[1:]]
