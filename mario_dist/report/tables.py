"""The report's tables: what was run, what protocols said of it, and how it was configured."""

from collections.abc import Mapping, Sequence

from mario_dist.report.charts import run_colour
from mario_dist.report.judged import Judgement
from mario_dist.report.markup import Html, element
from mario_dist.report.progress import duration, number
from mario_dist.report.run_data import RunData
from mario_dist.report.settings import MISSING, differing, flatten

RECENT_EPISODES = 100


def names(runs: Sequence[RunData]) -> list[str]:
    """What to call runs: their names, or their ids where names are not unique."""
    given = [run.row.name for run in runs]
    return given if len(set(given)) == len(given) else [run.row.id for run in runs]


def swatch(index: int) -> Html:
    return element("span", class_="swatch", style=f"background:{run_colour(index)}")


def card(run: RunData, index: int, name: str, many: bool) -> Html:
    """One run: its best figures, and what it was."""
    row, best = run.row, run.best
    recent = run.episodes.cleared[-RECENT_EPISODES:]
    tiles = [
        (f"{recent.mean():.0%}" if len(recent) else "none", f"cleared of the last {len(recent)} episodes"),
        (f"{best.clear_rate:.0%}" if best else "none", "cleared in the best evaluation"),
        (f"{row.agent_steps:,}", f"of {row.total_steps:,} agent steps"),
        (duration(run.wall_s), "wall-clock, h:mm:ss"),
    ]
    commit = f"{row.git_commit or 'unknown'}{' (with changes)' if row.git_dirty else ''}"
    facts = {
        "run": row.id,
        "status": row.status,
        "algorithm": row.algo,
        "level": row.level,
        "seed": row.seed,
        "episodes": f"{len(run.episodes):,}, of which {int(run.episodes.cleared.sum()):,} cleared",
        "best evaluation": _describe(best) if best else "none",
        "started": f"{row.created_at:%Y-%m-%d %H:%M} UTC",
        "commit": commit,
        "machine": _machine(row.machine),
    }
    return element(
        "section",
        element("h3", swatch(index), name) if many else "",
        element("div", *(_tile(*tile) for tile in tiles), class_="tiles"),
        element("dl", *(_fact(key, value) for key, value in facts.items())),
        class_="card",
    )


def _tile(value: str, meaning: str) -> Html:
    return element("div", element("b", value), element("span", meaning))


def _fact(key: str, value: object) -> Html:
    return Html(element("dt", key) + element("dd", value))


def _describe(judgement: Judgement) -> str:
    low, high = judgement.clear_rate_ci
    return (
        f"{judgement.clear_rate:.1%} of {judgement.episodes} episodes cleared (95 % interval {low:.1%} to"
        f" {high:.1%}), {judgement.protocol} at {judgement.agent_steps:,} agent steps"
    )


def _machine(machine: Mapping[str, object]) -> str:
    """What ``machine.describe`` said, in a line."""
    gpus = machine.get("gpus")
    parts = [
        f"{machine['cores']} cores" if "cores" in machine else None,
        str(machine["cpu"]) if machine.get("cpu") else None,
        f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None,
        ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "no GPU",
        str(machine["platform"]) if machine.get("platform") else None,
    ]
    return ", ".join(part for part in parts if part) if machine else "unknown"


def evaluation_table(runs: Sequence[RunData], called: Sequence[str]) -> Html:
    """Every evaluation of every run."""
    many = len(runs) > 1
    head = ["agent steps", "by", "protocol", "levels", "episodes", "cleared", "95 % interval"]
    head += ["x-position (IQM)", "95 % interval", "time to clear"]
    rows = [
        [*([Html(swatch(i) + element("span", called[i]))] if many else []), *_cells(judgement)]
        for i, run in enumerate(runs)
        for judgement in run.judgements
    ]
    return table([*(["run"] if many else []), *head], rows)


def _cells(judgement: Judgement) -> list[object]:
    low, high = judgement.clear_rate_ci
    x_low, x_high = judgement.x_iqm_ci
    levels, times = judgement.levels, judgement.time_to_clear_s
    return [
        f"{judgement.agent_steps:,}",
        judgement.by,
        judgement.protocol,
        ", ".join(levels) if len(levels) <= 4 else f"{len(levels)} levels",
        judgement.episodes,
        f"{judgement.clear_rate:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{judgement.x_iqm:.0f}",
        f"{x_low:.0f} to {x_high:.0f}",
        f"{times[0]:.1f} s, best {times[1]:.1f} s" if times else MISSING,
    ]


def heat_map(judgement: Judgement) -> Html:
    """Clear rates by world (rows) and stage (columns)."""
    per_level = judgement.report["per_level"]

    def cell(level: str) -> Html:
        if level not in per_level:
            return element("td", MISSING, style="background:none;color:inherit")
        result = per_level[level]
        rate = float(result["clear_rate"])
        title = f"{level}: mean x {result['x_pos_mean']:.0f}"
        return element("td", f"{rate:.0%}", style=f"--rate:{rate:.3f}", title=title)

    head = element("tr", element("th", "world"), *(element("th", f"stage {stage}") for stage in range(1, 5)))
    body = [
        element("tr", element("th", world), *(cell(f"{world}-{stage}") for stage in range(1, 5)))
        for world in range(1, 9)
    ]
    return element("div", element("table", head, *body, class_="heat"), class_="scroll")


def config_tables(runs: Sequence[RunData], called: Sequence[str]) -> Html:
    """Where several runs differ, then every value."""
    flats = [flatten(run.row.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    head = ["key", *(called if len(runs) > 1 else ["value"])]

    def rows(of: Sequence[str]) -> list[list[object]]:
        return [[key, *(flat.get(key, MISSING) for flat in flats)] for key in of]

    whole = table(head, rows(keys))
    if len(runs) == 1:
        return element("details", element("summary", f"All {len(keys)} values"), whole)
    different = differing(flats)
    return Html(
        (table(head, rows(different)) if different else element("p", "The runs are configured alike."))
        + element("details", element("summary", f"All {len(keys)} values"), whole)
    )


def constants_table(constants: Mapping[str, float]) -> Html:
    """Metrics that never changed, which need no chart."""
    return table(["metric", "value"], [[name, number(value)] for name, value in constants.items()])


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Html:
    """A table that scrolls by itself where it is wider than the page. Long cells wrap."""
    lines = [element("tr", *(element("th", cell) for cell in head))]
    lines += [element("tr", *(_cell(cell) for cell in row)) for row in rows]
    return element("div", element("table", *lines), class_="scroll")


def _cell(value: object) -> Html:
    return element("td", value, class_="wrap" if len(str(value)) > 40 and type(value) is str else None)
