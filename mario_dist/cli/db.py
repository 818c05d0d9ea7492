"""mario-dist db upgrade | check | export | replay"""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mario_dist.errors import UserError

db_app = typer.Typer(no_args_is_help=True, help="The run database (MARIO_DIST_DB, by default runs/mario.db).")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Format(StrEnum):
    parquet = "parquet"
    csv = "csv"


@db_app.command("upgrade")
def upgrade_command(as_json: AsJson = False) -> None:
    """Bring the database to the newest schema. Trainings do it by themselves when they start.

    Example: MARIO_DIST_DB=postgresql://mario:PASSWORD@localhost/mario mario-dist db upgrade
    """
    from mario_dist.store import default_url, upgrade_database

    where, before, after = upgrade_database(default_url())
    if as_json:
        print(json.dumps({"database": where, "before": before, "after": after}))
    elif before == after:
        print(f"{where} is at the newest schema, {after}")
    else:
        print(f"{where}: from {before or 'nothing'} to schema {after}")


@db_app.command("check")
def check_command(as_json: AsJson = False) -> None:
    """Look whether the database is sound and misses nothing. Changes nothing; exit code 1 where it is not so.

    Example: mario-dist db check
    """
    from mario_dist.store import check_database, default_url
    from mario_dist.system.journals import waiting

    state = check_database(default_url())
    problems = [
        *state.problems,
        *(f"rows of {run_id} wait in its journal: run 'mario-dist db replay'" for run_id in waiting()),
    ]
    if as_json:
        print(json.dumps({**dataclasses.asdict(state), "problems": problems, "ok": not problems}))
    else:
        print(f"database   {state.where}, schema {state.revision or 'none'}")
        for table, count in state.rows.items():
            print(f"{table:12} {count:>12,} rows")
        for problem in problems:
            print(f"PROBLEM    {problem}")
        if not problems:
            print("sound")
    if problems:
        raise typer.Exit(1)


@db_app.command("export")
def export_command(
    out: Annotated[Path, typer.Argument(help="A directory for the files.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.parquet,
    run: Annotated[
        str | None, typer.Option(help="Only this run: an id, a unique beginning of it, or 'latest'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """All tables as files, one Parquet or CSV file each, of one moment.

    Example: mario-dist db export exported --format csv --run latest
    """
    from mario_dist.store import RunStore, default_url, export_database

    url = default_url()
    run_id = None
    if run is not None:
        with RunStore(url) as store:
            run_id = store.get_run(run).id
    written = export_database(url, out, format.value, run_id)
    if as_json:
        print(json.dumps({"files": {str(path): count for path, count in written.items()}}))
        return
    for path, count in written.items():
        print(f"{path}  {count:,} rows")


@db_app.command("replay")
def replay_command(as_json: AsJson = False) -> None:
    """Bring the rows that wait in runs' journals to the database, as after a training that was killed.

    Example: mario-dist db replay
    """
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.journals import replay_all

    with RunStore(default_url()) as store:
        written, skipped = replay_all(store)
    if as_json:
        print(json.dumps({"rows": written, "skipped": skipped}))
    else:
        for run_id, count in written.items():
            print(f"{run_id}  {count:,} rows")
        for run_id, why in skipped.items():
            print(f"{run_id}  left alone: {why}")
        if not written and not skipped:
            print("no journal has anything left")
    if skipped:
        raise UserError(f"{len(skipped)} journal(s) were left alone")
