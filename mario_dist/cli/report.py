"""mario-dist report"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mario_dist.errors import UserError


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Ids of runs, unique beginnings of them, or 'latest'."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="By default report.html, or comparison.html, in the first run's directory."
        ),
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip/--no-clip", help="Embed the newest video of each run's videos/.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """One self-contained HTML page: learning curves, where Mario dies, evaluations, metrics, configuration.

    Several runs are drawn over each other. The page needs no network.

    Example: mario-dist report latest
    """
    from datetime import UTC, datetime

    from mario_dist.cli.target import run_directory
    from mario_dist.machine import versions
    from mario_dist.report.page import build_page
    from mario_dist.report.run_data import read_run
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        rows = list({row.id: row for row in (store.get_run(run) for run in runs)}.values())
        data = [read_run(store, row, run_directory(row.id)) for row in rows]
    name = "report.html" if len(rows) == 1 else "comparison.html"
    target = out if out is not None else data[0].directory / name
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by mario-dist {versions().get('mario-dist', '')}."
    try:
        page = build_page(data, made, clip).encode()
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    try:
        # A reader never meets half a page.
        half = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            half.write_bytes(page)
            os.replace(half, target)
        finally:
            half.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    if as_json:
        print(json.dumps({"report": str(target), "bytes": len(page), "runs": [row.id for row in rows]}))
        return
    print(f"report       {target}  ({len(page) / 1e6:.1f} MB)")
