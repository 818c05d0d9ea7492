"""Watch a run from another process: what its rows in the run store say, shown as it shows itself."""

import time
from collections.abc import Iterable, Sequence

from mario_dist.config import RunConfig, parse
from mario_dist.report.live import CURVES, LiveView
from mario_dist.report.progress import Progress
from mario_dist.store import MetricRow, RunRow, RunStore

_EVERY_S = 1.0
_NOT_THE_LEARNERS = ("agent_steps_per_s", "collect_s", "learn_s", "queue_depth", "actor_restarts", "episodes")
_GROUPS = ("eval/", "alarm/", "worker_")


def watch(store: RunStore, run: RunRow, *, once: bool = False, view: LiveView | None = None) -> RunRow:
    """Show ``run`` until it has ended, or only as it is now. Returns it as it was last.

    Raises ``UserError`` where the store goes away.
    """
    config = parse(run.config)
    with view or LiveView(run.id, config) as shown:
        for name in CURVES:
            shown.recall(name, [row["value"] for row in store.metrics(run.id, [name])][:-1])
        seen: Progress | None = None
        while True:
            # The status first: what it wrote before it ended is there then.
            run = store.get_run(run.id)
            progress = look(store, run, config)
            if progress is not None and progress != seen:
                shown.update(progress)
                seen = progress
            if once or run.status != "running":
                return run
            time.sleep(_EVERY_S)


def look(store: RunStore, run: RunRow, config: RunConfig) -> Progress | None:
    """The run as it is now; None before its first report."""
    newest = store.newest_metrics(run.id)
    if not newest:
        return None
    return progress_of(run, config, newest, store.metrics(run.id, [*_EVALUATIONS, *ALARMS]))


_EVALUATIONS = ("eval/clear_rate", "eval/x_pos_mean")
ALARMS = tuple(f"alarm/{measure}" for measure in ("x_pos_mean", "clear_rate", "entropy", "approx_kl"))


def progress_of(
    run: RunRow, config: RunConfig, newest: Sequence[MetricRow], told: Iterable[MetricRow]
) -> Progress:
    """A look at a run from its newest report and from its evaluations and alarms. ``newest`` is not empty."""
    values = {row["name"]: row["value"] for row in newest}
    evaluations: dict[int, dict[str, float]] = {}
    alarm = None
    for row in told:
        if row["name"].startswith("alarm/"):
            measure = row["name"].removeprefix("alarm/")
            alarm = f"{measure} {row['value']:.3g} at {row['agent_steps']:,} steps"
        else:
            evaluations.setdefault(row["agent_steps"], {})[row["name"]] = row["value"]
    ranks = [(e["eval/clear_rate"], e["eval/x_pos_mean"]) for e in evaluations.values() if len(e) == 2]
    rate = values.get("agent_steps_per_s", 0.0)
    best_x = values.get("x_pos_best")
    shown = (*_NOT_THE_LEARNERS, "x_pos_mean", "x_pos_best", "clear_rate", "return_mean", "version")
    return Progress(
        agent_steps=newest[0]["agent_steps"],
        total_steps=run.total_steps,
        start_steps=0,
        wall_s=newest[0]["wall_s"],
        agent_steps_per_s=rate,
        env_frames_per_s=rate * config.env.frame_skip,
        episodes=int(values.get("episodes", 0)),
        x_pos_mean=values.get("x_pos_mean"),
        x_pos_best=None if best_x is None else int(best_x),
        clear_rate=values.get("clear_rate"),
        return_mean=values.get("return_mean"),
        policy_lag=int(values.get("policy_lag", 0)),
        queue_depth=int(values.get("queue_depth", 0)),
        version=int(values.get("version", 0)),
        metrics={n: v for n, v in values.items() if n not in shown and not n.startswith(_GROUPS)},
        evaluation=max(ranks, default=None),
        alarm=alarm,
    )
