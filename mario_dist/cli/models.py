"""mario-dist models register | list | promote | rollback | history | watch"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mario_dist.errors import UserError

if TYPE_CHECKING:
    from mario_dist.checkpoint import TrainState
    from mario_dist.evaluation import Gate
    from mario_dist.registry import ModelRegistry, Version
    from mario_dist.store import PromotionRow

models_app = typer.Typer(no_args_is_help=True, help="Trained policies: registered ones, and the zoo.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered model, such as mario-1-1-ppo.")]
AliasName = Annotated[str, typer.Option("--alias", help="The alias.")]
GateFile = Annotated[
    Path | None,
    typer.Option(
        "--gate", metavar="FILE", help="The gate as YAML, such as configs/gates/strict.yaml.", exists=False
    ),
]
_GATE_HELP = "Changes of the gate: protocol=, episodes=, seed=, min_clear_rate=, not_worse=."
GateChanges = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_GATE_HELP)]
_CHAMPION = "champion"


@models_app.command("register")
def register_command(
    target: Annotated[str, typer.Argument(help="A run's id, 'latest', a checkpoint's path, or zoo:1-1.")],
    gate_changes: GateChanges = None,
    gate_file: GateFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's best and final checkpoints versions of mario-<levels>-<algo> in MLflow's registry.

    Each is judged by the gate's protocol first. What is a version already stays that one.

    Example: mario-dist models register latest
    """
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.models import register
    from mario_dist.system.promotion import gate_judge

    gate, registry = _gate(gate_file, gate_changes), _registry()
    done = []
    with RunStore(default_url()) as store:
        report_of = gate_judge(gate, store)
        for kind, state, source in _checkpoints(target):
            _note(f"{kind}: {source}")
            version, new = register(registry, store, state, source, kind, report_of)
            done.append((version, kind, new))
    if as_json:
        print(json.dumps([{**_document(version), "new": new} for version, _, new in done], default=str))
        return
    for version, kind, new in done:
        said = "registered" if new else "was registered already"
        print(f"{version.target}  {kind}, {said}: cleared {_rate(version)}")
    print(f"promote it: mario-dist models promote {done[0][0].name} {done[0][0].number}")


@models_app.command("list")
def list_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this model.", show_default=False)
    ] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Those that come with the package instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the versions of registered models, or the zoo, with what a protocol said of each.

    Example: mario-dist models list --zoo
    """
    if zoo:
        _list_zoo(as_json)
        return
    registry = _registry()
    names = registry.names() if name is None else [name]
    versions = [version for each in names for version in registry.versions(each)]
    if as_json:
        print(json.dumps([_document(version) for version in versions], default=str))
        return
    if not versions:
        which = "no model is registered" if name is None else f"there is no model {name!r}"
        raise UserError(
            f"{which} in {registry.where}; 'mario-dist models register RUN' makes one, and"
            " 'mario-dist models list --zoo' shows those that come with the package"
        )
    table = Table("version", "aliases", "kind", "cleared", "95 %", "agent steps", "registered", box=None)
    table.columns[0].no_wrap = True
    for version in versions:
        tags = version.tags
        steps = tags.get("mario_dist.agent_steps", "")
        table.add_row(
            version.target,
            ", ".join(version.aliases),
            tags.get("mario_dist.kind", "not ours"),
            _rate(version),
            tags.get("mario_dist.clear_rate_ci", ""),
            f"{int(steps):,}" if steps.isdecimal() else "",
            _time(version.created_at),
        )
    _console().print(table)


@models_app.command("promote")
def promote_command(
    name: Name,
    version: Annotated[str, typer.Argument(help="A version's number, or @ALIAS for the one that has it.")],
    gate_changes: GateChanges = None,
    alias: AliasName = _CHAMPION,
    gate_file: GateFile = None,
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says; takes --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give a version an alias, by default champion, if it passes the gate.

    The gate: it is what was registered, clears at least min_clear_rate of a protocol's episodes, and is not
    worse than the version that has the alias now.

    Example: mario-dist models promote mario-1-1-ppo 3 min_clear_rate=0.9
    """
    from mario_dist.registry import Reference, check_alias, version_number
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.promotion import Alias, promote

    if force and not reason.strip():
        raise UserError("--force wants to know why: add --reason TEXT")
    check_alias(alias)
    other = check_alias(version[1:]) if version.startswith("@") else None
    number = None if other is not None else version_number(version)
    gate, registry = _gate(gate_file, gate_changes), _registry()
    number = registry.version(Reference(name, number, other)).number
    with RunStore(default_url()) as store:
        row = promote(
            Alias(registry, store, name, alias),
            number,
            gate,
            force=force,
            reason=reason,
            note=_note,
        )
    _print_move(row, as_json)


@models_app.command("rollback")
def rollback_command(
    name: Name,
    alias: AliasName = _CHAMPION,
    to: Annotated[int | None, typer.Option(min=1, help="A version instead of the one before.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give an alias back to the version that had it before.

    Example: mario-dist models rollback mario-1-1-ppo --reason "falls into the second pit"
    """
    from mario_dist.registry import check_alias
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.promotion import Alias, rollback

    check_alias(alias)
    with RunStore(default_url()) as store:
        row = rollback(Alias(_registry(), store, name, alias), to, reason=reason)
    _print_move(row, as_json)


@models_app.command("history")
def history_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this model.", show_default=False)
    ] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Only this alias.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who had an alias when, who gave it to them, and why: the audit, oldest first.

    Example: mario-dist models history mario-1-1-ppo
    """
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        rows = store.promotions(name, alias)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], default=_plain))
        return
    if not rows:
        raise UserError(f"nothing is known of {name or 'any model'} yet: nothing was promoted")
    table = Table("when", "alias", "what", "from", "to", "verdict", "cleared", "by", "why", box=None)
    for row in rows:
        cleared = "" if row.report is None else f"{row.report['clear_rate']:.0%}"
        moved = row.event if row.moved else f"{row.event}, refused"
        table.add_row(
            _time(row.at),
            f"{row.model}@{row.alias}",
            moved,
            _number(row.from_version),
            _number(row.to_version),
            row.verdict,
            cleared,
            row.actor or "unknown",
            row.reason,
        )
    _console().print(table)


@models_app.command("watch")
def watch_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One model.", show_default=False)
    ] = None,
    gate_changes: GateChanges = None,
    every: Annotated[bool, typer.Option("--all", help="All models, those to come among them.")] = False,
    alias: AliasName = _CHAMPION,
    gate_file: GateFile = None,
    put_back: Annotated[
        bool, typer.Option("--put-back", help="Where a version fails, give the alias back to the one before.")
    ] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between looks.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print one JSON document.")] = False,
) -> None:
    """Follow an alias that anyone may change, in MLflow's UI too: verify the new version, and keep a record.

    Started again, it deals with what changed meanwhile. Ctrl-C or SIGTERM ends it.

    Example: mario-dist models watch --all --put-back min_clear_rate=0.9
    """
    from mario_dist.registry import check_alias
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.watching import watch

    changes = list(gate_changes or [])
    if name is not None and "=" in name:  # --all KEY=VALUE
        changes = [name, *changes]
        name = None
    if (name is None) is not every:
        raise typer.BadParameter("name one model to watch, or all by --all")
    if as_json and not once:
        raise typer.BadParameter("--json is for --once")
    check_alias(alias)
    gate, registry = _gate(gate_file, changes), _registry()
    with RunStore(default_url()) as store:
        rows = watch(
            registry,
            store,
            name,
            alias,
            gate,
            put_back=put_back,
            every_s=None if once else every_s,
            note=_note,
            told=(lambda row: None) if as_json else _print_line,
        )
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], default=_plain))


def _list_zoo(as_json: bool) -> None:
    from mario_dist.zoo import PREFIX, zoo_entry, zoo_names

    entries = {PREFIX + name: zoo_entry(name) for name in zoo_names()}
    if as_json:
        print(json.dumps([{"target": target, **entry} for target, entry in entries.items()]))
        return
    table = Table(
        "policy", "algo", "levels", "protocol", "cleared", "95 %", "agent steps", "trained", box=None
    )
    for target, entry in entries.items():
        report, config = entry["evaluation"], entry["config"]
        low, high = report["clear_rate_ci"]
        table.add_row(
            target,
            config["algo"]["name"],
            ",".join(config["env"]["levels"]),
            report["protocol"]["name"],
            f"{report['clear_rate']:.0%} of {report['episodes']}",
            f"{low:.0%} to {high:.0%}",
            f"{entry['counters']['agent_steps']:,}",
            f"{entry['wall_s'] / 60:.0f} min",
        )
    _console().print(table)
    print("play one: uv run mario-dist play zoo:NAME")


def _checkpoints(target: str) -> "list[tuple[str, TrainState, str]]":
    """What ``register`` takes of a TARGET: a run's best and newest checkpoint, or the one that is named."""
    from mario_dist.checkpoint import best_checkpoint, list_checkpoints
    from mario_dist.cli.target import read_state, run_directory
    from mario_dist.registry import PREFIX as MODELS
    from mario_dist.zoo import PREFIX as ZOO

    if target.startswith(MODELS):
        raise UserError(f"{target} is a registered model already")
    path = Path(target)
    if target.startswith(ZOO):
        return [("zoo", *read_state(target))]
    if (path / "manifest.json").is_file() or path.name.startswith("step-"):
        return [("checkpoint", *read_state(target))]
    folder = run_directory(target) / "checkpoints"
    best, newest = best_checkpoint(folder), next(iter(list_checkpoints(folder)), None)
    if newest is None:
        raise UserError(f"{target} has no checkpoint yet")
    if best in (None, newest):
        return [("final" if best is None else "best and final", *read_state(str(newest)))]
    return [("best", *read_state(str(best))), ("final", *read_state(str(newest)))]


def _gate(path: Path | None, changes: Sequence[str] | None) -> "Gate":
    from mario_dist.config import load_settings
    from mario_dist.evaluation import Gate

    return load_settings(Gate, path, changes or ())


def _registry() -> "ModelRegistry":
    from mario_dist.registry import ModelRegistry, default_tracking_uri

    return ModelRegistry(default_tracking_uri())


def _document(version: "Version") -> dict[str, Any]:
    return {"target": version.target, **dataclasses.asdict(version)}


def _rate(version: "Version") -> str:
    rate = version.tags.get("mario_dist.clear_rate")
    try:
        return "" if rate is None else f"{float(rate):.0%}"
    except ValueError:
        return rate or ""  # anyone may write a tag


def _print_move(row: "PromotionRow", as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(row), default=_plain))
        return
    _print_line(row)
    print(f"use it: mario-dist play models:/{row.model}@{row.alias}")


def _print_line(row: "PromotionRow") -> None:
    moved = f"from {_number(row.from_version)} to {_number(row.to_version)}"
    judged = "" if row.report is None else f", cleared {row.report['clear_rate']:.0%}"
    why = f" ({row.reason})" if row.reason else ""
    print(f"{row.model}@{row.alias}: {row.event} {moved}: {row.verdict}{judged}{why}", flush=True)


def _number(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 200)


def _plain(value: object) -> str:
    """JSON for what its encoder does not know: points in time."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
