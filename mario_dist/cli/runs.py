"""mario-dist runs list | show | compare | export"""

import dataclasses
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mario_dist.cli.evaluate import Episodes, Levels, Protocol, Seed, describe
from mario_dist.errors import UserError

runs_app = typer.Typer(no_args_is_help=True, help="What was trained.")


@runs_app.command("list")
def list_command(
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The runs of this run store, the newest first.

    Example: mario-dist runs list --limit 5
    """
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        runs = store.list_runs(limit)
    if as_json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], default=_plain))
        return
    if not runs:
        raise UserError("there is no run yet; make one with mario-dist train")
    table = Table("id", "status", "level", "algo", "agent steps", "seed", "started", box=None)
    table.columns[0].no_wrap = True  # an id is there to be copied
    for run in runs:
        steps = f"{run.agent_steps:,} / {run.total_steps:,}"
        started = f"{run.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(run.id, run.status, run.level, run.algo, steps, str(run.seed), started)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@runs_app.command("show")
def show_command(
    run: Annotated[str, typer.Argument(help="A run's id, a unique beginning of it, or 'latest'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """One run: its state, its episodes and its checkpoints.

    Example: mario-dist runs show latest
    """
    from mario_dist.report.watch import ALARMS
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        row = store.get_run(run)
        summary = store.episode_summary(row.id)
        checkpoints = store.checkpoints(row.id)
        evaluations = store.evaluations(row.id)
        alarms = store.metrics(row.id, ALARMS)
    if as_json:
        document = {
            **dataclasses.asdict(row),
            "episodes": summary,
            "checkpoints": [dataclasses.asdict(checkpoint) for checkpoint in checkpoints],
            "evaluations": [dataclasses.asdict(evaluation) for evaluation in evaluations],
            "alarms": alarms,
        }
        print(json.dumps(document, default=_plain))
        return
    commit = f"{row.git_commit or 'unknown'}{' (with changes)' if row.git_dirty else ''}"
    print(f"run          {row.id}")
    print(f"status       {row.status} at {row.agent_steps:,} of {row.total_steps:,} agent steps")
    print(f"what         {row.algo} on {row.level}, seed {row.seed}, commit {commit}")
    print(f"directory    {row.directory}")
    print(f"mlflow run   {row.mlflow_run_id or 'none'}")
    cleared = f"cleared {summary['flags']:,}"
    print(f"episodes     {summary['count']:,}, {cleared}, best x {_number(summary['best_x'])}")
    print(
        f"last 100     mean x {_number(summary['mean_x_last_100'])},"
        f" mean return {_number(summary['mean_return_last_100'])}"
    )
    for checkpoint in checkpoints:
        rate = checkpoint.evaluation["clear_rate"] if checkpoint.evaluation else None
        judged = f"  cleared {rate:.0%}" if rate is not None else ""
        kept = "" if Path(checkpoint.path).exists() else "  (no longer there)"
        print(f"  {checkpoint.kind:6} {checkpoint.agent_steps:>12,}  {checkpoint.path}{judged}{kept}")
    for evaluation in evaluations:
        report = evaluation.report
        low, high = report["clear_rate_ci"]
        mean_x = report["x_pos"]["mean"]
        found = f"cleared {report['clear_rate']:.1%} ({low:.1%} to {high:.1%}), mean x {mean_x:.0f}"
        print(f"  judged {evaluation.agent_steps:>12,}  {found}: {describe(report['protocol'])}")
    for alarm in alarms:
        what = alarm["name"].removeprefix("alarm/")
        print(f"  ALARM  {alarm['agent_steps']:>12,}  {what} {_number(alarm['value'])}")


@runs_app.command("export")
def export_command(
    run: Annotated[str, typer.Argument(help="A run's id, a unique beginning of it, or 'latest'.")],
    out: Annotated[Path | None, typer.Option(help="A directory; by default the run's id here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """A run as CSV: every episode of every lane, every metric; its evaluations as JSON.

    Example: mario-dist runs export latest --out exported
    """
    from mario_dist.report.export import export_run
    from mario_dist.store import RunStore, default_url

    with RunStore(default_url()) as store:
        row = store.get_run(run)
        written = export_run(store, row, out or Path(row.id))
    if as_json:
        print(json.dumps({"id": row.id, "files": [str(path) for path in written]}))
        return
    for path in written:
        print(path)


@runs_app.command("compare")
def compare_command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE TARGET...", help="Runs, checkpoints or baselines; the first is the base."
        ),
    ],
    protocol: Protocol = "jitter-30",
    episodes: Episodes = 100,
    seed: Seed = 0,
    levels: Levels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Whether runs are better or worse than the first: the same protocol, intervals and permutation tests.

    A report of the same protocol and checkpoint that is in the run store is used; what is missing is played.

    Example: mario-dist runs compare baseline:random latest
    """
    from mario_dist.cli.evaluate import keep, make_protocol
    from mario_dist.cli.target import load_policy
    from mario_dist.evaluation import compare, settled
    from mario_dist.store import RunStore, default_url
    from mario_dist.system.judging import judge, remembered

    if len(targets) < 2:
        raise typer.BadParameter("compare takes two targets or more, such as: runs compare RUN RUN")
    policies = [load_policy(target) for target in targets]
    if levels is None:
        # A policy is judged where all were trained, the base's levels first.
        shared = dict.fromkeys(level for policy in policies for level in policy.config.env.levels)
        levels = ",".join(shared)
    asked_of = [make_protocol(policy, protocol, episodes, seed, levels) for policy in policies]
    if len({settled(a, p.network).greedy for a, p in zip(asked_of, policies, strict=True)}) > 1:
        raise UserError(
            "a Q-network plays greedily and the others sample: compare them by --protocol jitter-30-greedy"
        )
    reports = []
    for policy, asked in zip(policies, asked_of, strict=True):
        with RunStore(default_url()) as store:
            report = remembered(policy, asked, store)
        if report is None:
            typer.echo(f"playing {episodes} episodes of each level: {policy.source}", err=True)
            played = judge(policy, asked)
            keep(policy, played)
            report = dataclasses.asdict(played)
        reports.append(report)
    differences = compare(reports[0], reports[1:])
    if as_json:
        document = {
            "protocol": reports[0]["protocol"],
            "base": policies[0].source,
            "comparisons": [
                {
                    "target": policy.source,
                    "measures": [{**dataclasses.asdict(d), "verdict": d.verdict} for d in of_one],
                }
                for policy, of_one in zip(policies[1:], differences, strict=True)
            ],
        }
        print(json.dumps(document))
        return
    print(f"protocol   {describe(reports[0]['protocol'])}")
    print(f"base       {targets[0]}: {policies[0].source}")
    for target, policy, of_one in zip(targets[1:], policies[1:], differences, strict=True):
        print(f"{target}: {policy.source}")
        for d in of_one:
            shown = _percent if d.measure == "clear rate" else _number
            low, high = (shown(bound) for bound in d.interval)
            print(
                f"  {d.measure:10} {shown(d.value)} against {shown(d.base)}, difference {shown(d.difference)}"
                f" (95 % interval {low} to {high}), p {d.p_adjusted:.2g}: {d.verdict}"
            )
    if len(targets) > 2:
        print("p is corrected for the number of tests (Holm)")


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def _plain(value: object) -> str:
    """JSON for what its encoder does not know: points in time."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
