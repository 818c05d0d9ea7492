"""``mario-dist doctor``: what is missing on this machine, and the command that mends it."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from json import dumps
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mario_dist.cli.doctor_checks import CHECKS, Check, reinstall
from mario_dist.errors import UserError

__all__ = ["Check", "checks", "doctor"]


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Say what is missing on this machine, and the command that mends it.

    Example: mario-dist doctor
    """
    stderr = Console(stderr=True)
    with stderr.status("Looking at this machine") if stderr.file.isatty() else nullcontext():
        found = checks()
    healthy = all(check.ok for check in found if check.required)
    if json:
        print(dumps({"ok": healthy, "checks": [asdict(check) for check in found]}, indent=2))
    else:
        _show(found, Console())
    raise typer.Exit(0 if healthy else 1)


def checks() -> list[Check]:
    """Every check, in the order in which to mend what they find."""
    return [_run(name, check) for name, check in CHECKS.items()]


def _run(name: str, check: Callable[[str], Check]) -> Check:
    # Whatever breaks inside a check is what the check was looking for.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check(name)
        return replace(found, fix="") if found.ok else found
    except Exception as error:
        message = " ".join(str(error).split())
        detail = message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
        return Check(name, False, detail, "" if isinstance(error, UserError) else reinstall())


def _show(found: list[Check], console: Console) -> None:
    """A table on a terminal, one line a check anywhere else."""
    marks = [
        ("ok", "green") if c.ok else ("FAIL", "bold red") if c.required else ("note", "yellow") for c in found
    ]
    if not console.file.isatty():
        for check, (mark, _) in zip(found, marks, strict=True):
            fix = f"  fix: {check.fix}" if check.fix else ""
            print(f"{mark:<4}  {check.name}: {check.detail}{fix}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "check", "found", "what mends it"):
        table.add_column(title, no_wrap=title in ("", "check"), overflow="fold")
    for check, (mark, style) in zip(found, marks, strict=True):
        table.add_row(f"[{style}]{mark}[/]", check.name, escape(check.detail), escape(check.fix))
    console.print(table)
