"""Runs as one HTML file that needs nothing beside itself: no server, no network.

Plotly is carried as gzip in base64, a third of its size, and unpacked by the browser. All charts' data is
packed too; see ``charts``.
"""

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mario_dist.report import charts
from mario_dist.report.charts import MAX_POINTS, Figure
from mario_dist.report.curves import MIN_EPISODES, WINDOW
from mario_dist.report.failures import LANDMARKS
from mario_dist.report.judged import newest_played, played
from mario_dist.report.markup import Html, code_element, element, json_element
from mario_dist.report.metric_groups import group_metrics, metric_title
from mario_dist.report.run_data import RunData, find_clip
from mario_dist.report.tables import (
    card,
    config_tables,
    constants_table,
    evaluation_table,
    heat_map,
    names,
    swatch,
)

LAST_EPISODES = 1000
"""Of training, whose failures are shown: those of a policy much like the newest."""
MAX_LEVELS = 6
"""Levels with charts of their own; a run on all 32 would make a page that no phone draws."""
MAX_CLIP_BYTES = 20_000_000
_HERE = Path(__file__).parent
# Whatever a run is called, a browser takes nothing from anywhere for this page.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:;"
    " media-src data:"
)


@dataclass(frozen=True, slots=True)
class _Charts:
    """The figures of a page, which are drawn where ``add`` put their elements."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, figure: Figure, title: str, note: object = "") -> Html:
        identifier = f"chart-{len(self.figures)}"
        self.figures[identifier] = figure
        heading, caption = element("h3", title), element("figcaption", note) if note else ""
        chart = element("div", id=identifier, class_="chart", role="img", aria_label=title)
        return element("figure", heading, chart, caption)


def build_page(runs: Sequence[RunData], made: str, clip: bool = True) -> str:
    """The report of one run, or of several over each other. made: when and by what, for its last line.

    clip: embed the newest video of each run's directory. Raises ``OSError`` where one cannot be read.
    """
    called = names(runs)
    page = _Charts()
    sections = {
        "Learning": _learning(runs, called, page),
        "Failures": _failures(runs, called, page),
        "Evaluations": _evaluations(runs, called),
        "Clip": _clips(runs, called) if clip else Html(),
        "Metrics": _metrics(runs, page),
        "Configuration": config_tables(runs, called),
    }
    shown = {title: content for title, content in sections.items() if content}
    title = " / ".join(called)
    body = [
        element(
            "header",
            element("h1", title),
            element("nav", *(element("a", name, href=f"#{name.lower()}") for name in shown)),
            _noscript(),
            element("p", id="problem", class_="problem", hidden=True),
        ),
        element(
            "main",
            element(
                "div",
                *(card(run, i, called[i], len(runs) > 1) for i, run in enumerate(runs)),
                class_="runs" if len(runs) > 1 else None,
            ),
            *(Html(element("h2", name, id=name.lower()) + content) for name, content in shown.items()),
            element("p", made, class_="muted"),
        ),
        json_element("figures", {"charts": page.figures, "wall_unit": wall_unit(runs)}),
        element("script", _packed_plotly(), type="text/plain", id="plotly"),
        code_element("script", (_HERE / "page.js").read_text("utf-8")),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        code_element("style", (_HERE / "page.css").read_text("utf-8")),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def wall_unit(runs: Sequence[RunData]) -> dict[str, object]:
    """In what the longest run's wall-clock is read best."""
    longest = max((run.wall_s or 0.0 for run in runs), default=0.0)
    if longest < 120:
        return {"name": "seconds", "seconds": 1}
    return {"name": "minutes", "seconds": 60} if longest < 7200 else {"name": "hours", "seconds": 3600}


def _learning(runs: Sequence[RunData], called: Sequence[str], page: _Charts) -> Html:
    columns = [(name, run.episodes) for name, run in zip(called, runs, strict=True)]
    if not any(len(episodes) for _, episodes in columns):
        return element("p", "No episode has ended yet.")
    note = (
        f"Average of the last {WINDOW} episodes of all lanes, from the {MIN_EPISODES}th on, with the 95 %"
        " interval of that average."
    )
    rates = f"Share of the last {WINDOW} episodes that reached the flag, with Wilson's 95 % interval."
    if len(runs) == 1:
        count = len(runs[0].episodes)
        thinned = f"Of {count:,} episodes, {MAX_POINTS:,} are drawn, evenly spaced."
        note += f" {thinned}" if count > MAX_POINTS else f" A point is one of {count:,} episodes."
    return Html(
        _switch()
        + page.add(charts.x_position(columns), "How far Mario gets", note)
        + page.add(charts.clear_rate(columns), "How often he reaches the flag", rates)
    )


def _switch() -> Html:
    """What the curves are drawn over, for all charts over time."""

    def choice(value: str, label: str, checked: bool) -> Html:
        button = element("input", type="radio", name="clock", value=value, checked=checked or None)
        return element("label", button, label)

    choices = choice("steps", "agent steps", True), choice("wall", "wall-clock", False)
    return element("fieldset", element("span", "Curves over"), *choices, class_="switch")


def _failures(runs: Sequence[RunData], called: Sequence[str], page: _Charts) -> Html:
    parts = []
    for i, (run, name) in enumerate(zip(runs, called, strict=True)):
        whose = element("h3", swatch(i), name) if len(runs) > 1 else ""
        charted = _failures_of(run, page)
        parts += [whose, *charted] if charted else []
    return Html("".join(parts))


def _failures_of(run: RunData, page: _Charts) -> list[Html]:
    found = []
    episodes, newest = run.episodes, newest_played(run.judgements)
    recent = slice(-LAST_EPISODES, None)
    x_pos, ends, level_of = episodes.x_pos[recent], episodes.end[recent], episodes.level[recent]
    levels = sorted({*level_of.tolist(), *(level for j in newest for level in j.levels)})
    for level in levels[:MAX_LEVELS]:
        here = level_of == level
        around = (
            " Grey is what stands there; in a room below a pipe, x counts on." if level in LANDMARKS else ""
        )
        if (ends[here] != "flag").any():
            failed = int((ends[here] != "flag").sum())
            note = f"{failed:,} of the {int(here.sum()):,} newest training episodes did not reach the flag."
            figure = charts.failures(x_pos[here], ends[here].tolist(), level)
            found.append(page.add(figure, f"{level}: where training episodes fail", note + around))
        judged_x, judged_ends = played(newest, level)
        if failed := sum(end != "flag" for end in judged_ends):
            note = (
                f"{failed:,} of {len(judged_ends):,} episodes of the evaluations of the checkpoint at"
                f" {newest[0].agent_steps:,} agent steps did not reach the flag."
            )
            figure = charts.failures(judged_x, judged_ends, level)
            found.append(page.add(figure, f"{level}: where evaluations fail", note))
    if found and len(levels) > MAX_LEVELS:
        found.append(element("p", f"Of {len(levels)} levels, the first {MAX_LEVELS} are shown."))
    return found


def _evaluations(runs: Sequence[RunData], called: Sequence[str]) -> Html:
    if not any(run.judgements for run in runs):
        return element("p", "None yet: mario-dist eval makes them.")
    maps = []
    for i, run in enumerate(runs):
        widest = max(reversed(run.judgements), key=lambda j: len(j.levels), default=None)
        if widest is not None and len(widest.levels) > 1:
            which = f"{widest.protocol} at {widest.agent_steps:,} agent steps: clear rate of each level"
            maps += [element("h3", swatch(i), called[i], ", ", which), heat_map(widest)]
    return Html(evaluation_table(runs, called) + Html("".join(maps)))


def _metrics(runs: Sequence[RunData], page: _Charts) -> Html:
    every = {name for run in runs for name in run.metrics}
    constants: dict[str, float] = {}
    for name in sorted(every):
        values = {run.metrics[name].constant for run in runs if name in run.metrics}
        only = values.pop() if len(values) == 1 else None
        if only is not None:
            constants[name] = only
    parts = []
    for title, members in group_metrics(every - constants.keys()).items():
        figures = [
            page.add(charts.metric(name, [run.metrics.get(name) for run in runs]), metric_title(name))
            for name in members
        ]
        parts += [element("p", element("b", title)), element("div", *figures, class_="small")]
    if constants:
        parts += [element("p", element("b", "The same all along")), constants_table(constants)]
    return Html("".join(parts))


def _clips(runs: Sequence[RunData], called: Sequence[str]) -> Html:
    return Html(
        "".join(
            clip_figure(path, f"{name}, {path.name}")
            for run, name in zip(runs, called, strict=True)
            if (path := find_clip(run.directory)) is not None
        )
    )


def clip_figure(path: Path, caption: str, max_bytes: int = MAX_CLIP_BYTES) -> Html:
    """A video within the page, or why it is not. Raises ``OSError`` where it cannot be read."""
    size = path.stat().st_size
    if size > max_bytes:
        too_large = (
            f"{path.name} is not here: it has {size / 1e6:.1f} MB, more than {max_bytes / 1e6:.0f} MB."
        )
        return element("p", too_large, class_="muted")
    source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    video = element("video", src=source, controls=True, muted=True, loop=True, playsinline=True)
    return element("figure", video, element("figcaption", caption))


def _noscript() -> Html:
    return element("noscript", element("p", "The charts need JavaScript; the tables do not."))


def _packed_plotly() -> Html:
    """plotly.js in base64 of gzip, whose alphabet needs no escape."""
    # Importing it takes a moment, which no other part of a report needs.
    from plotly.offline import get_plotlyjs

    # Without a time in it, the same runs give the same page.
    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return Html(base64.b64encode(packed).decode())
