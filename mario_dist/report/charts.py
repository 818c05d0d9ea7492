"""The report's figures, as Plotly reads them: plain data, without colours that depend on light or dark.

A figure over time has its x values twice: agent steps in its traces and wall-clock under ``wall``, so that
the page can switch.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mario_dist.report.curves import Band, extremes, moving_mean, moving_rate, spaced
from mario_dist.report.failures import BIN_PIXELS, LANDMARKS, count_failures
from mario_dist.report.run_data import EpisodeColumns, Series
from mario_dist.types import F64, EpisodeEnd

type Figure = dict[str, Any]

MAX_POINTS = 20_000
"""Episodes drawn as points: what a phone still draws in a moment."""
MAX_CURVE_POINTS = 1_000

RUN_COLOURS = (
    "#3b82f6",
    "#f97316",
    "#10b981",
    "#a855f7",
    "#ef4444",
    "#14b8a6",
    "#ca8a04",
    "#ec4899",
)
_CAUSE_COLOURS: dict[EpisodeEnd, str] = {
    "death": "#ef4444",
    "stall": "#f59e0b",
    "astray": "#0ea5e9",
    "time": "#8b5cf6",
    "truncated": "#64748b",
}


def run_colour(index: int) -> str:
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def x_position(runs: Sequence[tuple[str, EpisodeColumns]]) -> Figure:
    """x-position against time of one run's every episode with the moving average, or averages of several."""
    figure = _over_time("x-position (pixels)")
    if len(runs) == 1:
        episodes = runs[0][1]
        index = spaced(len(episodes), MAX_POINTS)
        points = {
            "mode": "markers",
            "name": "episode",
            "y": packed(episodes.x_pos[index]),
            "marker": {"size": 3, "color": run_colour(0), "opacity": 0.3},
            "hoverinfo": "skip",
        }
        _add(figure, points, episodes.agent_steps[index], episodes.wall_s[index])
    for i, (name, episodes) in enumerate(runs):
        _add_band(figure, i, _label(name, runs), episodes, moving_mean(episodes.x_pos), "%{y:.0f}")
    return figure


def clear_rate(runs: Sequence[tuple[str, EpisodeColumns]]) -> Figure:
    """The moving clear rate of each run."""
    figure = _over_time("clear rate")
    # In whole figures the axis reaches 1 only where a run does: a rate of 2 % must be seen to differ from 0.
    figure["layout"]["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    for i, (name, episodes) in enumerate(runs):
        _add_band(figure, i, _label(name, runs), episodes, moving_rate(episodes.cleared), "%{y:.1%}")
    return figure


def metric(name: str, runs: Sequence[Series | None]) -> Figure:
    """One metric of every run that has it; the index of a run is that of its colour."""
    figure = _over_time("")
    figure["layout"] |= {"showlegend": False, "hovermode": "x"}
    # A learning rate of 500µ is 5e-4 to everyone.
    figure["layout"]["yaxis"]["exponentformat"] = "e"
    for i, series in enumerate(runs):
        if series is None:
            continue
        index = extremes(series.value, MAX_CURVE_POINTS)
        line = {
            "mode": "lines" if len(index) > 1 else "markers",
            "name": name,
            "y": packed(series.value[index]),
            "line": {"width": 1.3, "color": run_colour(i)},
            "hovertemplate": "%{y:.4~g}<extra></extra>",
        }
        _add(figure, line, series.agent_steps[index], series.wall_s[index])
    return figure


def failures(x_pos: Sequence[int] | F64, ends: Sequence[str], level: str) -> Figure:
    """Failed episodes by where they ended, stacked by cause, among the level's landmarks."""
    counts = count_failures(x_pos, ends)
    figure: Figure = {"data": [], "layout": _layout("episodes")}
    for cause, count_bins in counts.items():
        occupied = np.flatnonzero(count_bins)
        figure["data"].append(
            {
                "type": "bar",
                "name": cause,
                "x": packed((occupied + 0.5) * BIN_PIXELS),
                "y": packed(count_bins[occupied]),
                "width": BIN_PIXELS,
                "marker": {"color": _CAUSE_COLOURS[cause], "line": {"width": 0}},
                "customdata": (occupied * BIN_PIXELS).tolist(),
                "hovertemplate": "x %{customdata} on: %{y} by " + cause + "<extra></extra>",
            }
        )
    marks = LANDMARKS.get(level, ())
    furthest = max([mark.x_to for mark in marks] + [int(x) for x in x_pos] + [BIN_PIXELS])
    figure["layout"] |= {
        "barmode": "stack",
        "bargap": 0,
        "xaxis": {"title": {"text": "x-position (pixels)"}, "range": [0, furthest + 2 * BIN_PIXELS]},
        "shapes": [
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": mark.x_from,
                "x1": max(mark.x_to, mark.x_from + 4),
                "y0": 0,
                "y1": 1,
                "line": {"width": 0},
                "fillcolor": "rgba(128,128,128,0.22)",
                "layer": "below",
            }
            for mark in marks
        ],
        "annotations": [
            {
                "text": mark.name,
                "x": (mark.x_from + mark.x_to) / 2,
                "xref": "x",
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "textangle": -90,
                "showarrow": False,
                "font": {"size": 10},
            }
            for mark in marks
        ],
    }
    # The names of the landmarks stand above the plot, so its legend is below the axis.
    figure["layout"]["margin"] |= {"t": 62 if marks else 10, "b": 74}
    figure["layout"] |= {
        "legend": {"orientation": "h", "x": 0, "y": 0, "yanchor": "bottom", "yref": "container"},
        "showlegend": True,
    }
    return figure


def packed(values: F64 | np.ndarray[Any, np.dtype[np.generic]]) -> Mapping[str, str]:
    """An array as Plotly takes it packed: a type and little-endian bytes in base64.

    Single precision, where it loses nothing that a chart could show.
    """
    array = np.asarray(values, dtype="<f8")
    # Agent steps beyond 2**24 would lose their last digits.
    exact = bool(np.array_equal(array.astype("<f4"), array, equal_nan=True))
    small = exact or not np.nanmax(np.abs(array), initial=0.0) >= 2**20
    data = array.astype("<f4") if small else array
    return {"dtype": "f4" if small else "f8", "bdata": base64.b64encode(data.tobytes()).decode()}


def _label(name: str, runs: Sequence[object]) -> str:
    """A trace's name. Plotly reads markup in it, so a run's name is escaped."""
    return "average" if len(runs) == 1 else html.escape(name)


def _add_band(
    figure: Figure, index: int, name: str, episodes: EpisodeColumns, band: Band, shown: str
) -> None:
    """A run's curve and the interval around it."""
    # Episodes of one report of the actors have the same agent steps, and no order among them.
    last = np.append(np.diff(episodes.agent_steps) > 0, True)[: len(episodes)]
    kept = np.flatnonzero(~np.isnan(band.middle) & last)
    kept = kept[spaced(len(kept), MAX_CURVE_POINTS)]
    band, colour = band.at(kept), run_colour(index)
    steps, wall_s = episodes.agent_steps[kept], episodes.wall_s[kept]
    edge = {
        "mode": "lines",
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(index),
    }
    _add(figure, {**edge, "y": packed(band.low)}, steps, wall_s)
    filled = {"y": packed(band.high), "fill": "tonexty", "fillcolor": _translucent(colour)}
    _add(figure, {**edge, **filled}, steps, wall_s)
    middle = {
        "mode": "lines",
        "name": name,
        "y": packed(band.middle),
        "line": {"width": 2, "color": colour},
        "legendgroup": str(index),
        "hovertemplate": f"{shown}<extra>{name}</extra>",
    }
    _add(figure, middle, steps, wall_s)


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _over_time(y_title: str) -> Figure:
    layout = _layout(y_title)
    layout["xaxis"] = {"title": {"text": "agent steps"}, "rangemode": "tozero"}
    return {"data": [], "layout": layout, "wall": []}


def _add(figure: Figure, trace: Mapping[str, object], agent_steps: F64, wall_s: F64) -> None:
    """One trace over time, and when it happened."""
    figure["data"].append({"type": "scatter", **trace, "x": packed(agent_steps)})
    figure["wall"].append(packed(wall_s))


def _layout(y_title: str) -> dict[str, Any]:
    return {
        "margin": {"l": 8, "r": 8, "t": 10, "b": 8},
        "yaxis": {"title": {"text": y_title}, "automargin": True},
        "xaxis": {"automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
    }
