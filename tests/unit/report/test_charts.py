"""The figures: Plotly accepts them, and they hold what they should."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from mario_dist.report import charts
from mario_dist.report.run_data import EpisodeColumns, Series


def unpacked(packed: Mapping[str, str]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=f"<{packed['dtype']}")


def episodes(count: int) -> EpisodeColumns:
    rng = np.random.default_rng(count)
    return EpisodeColumns(
        agent_steps=np.sort(rng.integers(0, 10**9, count)).astype(np.float64),
        wall_s=np.linspace(0, 7200, count),
        x_pos=rng.integers(40, 3162, count).astype(np.float64),
        cleared=rng.random(count) < 0.2,
        end=rng.choice(["death", "time", "flag"], count),
        level=np.full(count, "1-1"),
    )


def accepted(figure: charts.Figure) -> None:
    """Plotly's own check of every name and value of a figure."""
    go.Figure(data=figure["data"], layout=figure["layout"])


@pytest.mark.parametrize("values", [[0.5, -1.25, np.nan], [0.1, 3e5], []])
def test_packed_values_come_back(values: list[float]) -> None:
    found = unpacked(charts.packed(np.array(values, dtype=np.float64)))
    np.testing.assert_allclose(found, values, rtol=1e-7)


@pytest.mark.parametrize("steps", [[2.0**24 + 1, 0.0], [1e9 + 1, 5.0]])
def test_packed_steps_keep_every_digit(steps: list[float]) -> None:
    assert unpacked(charts.packed(np.array(steps))).tolist() == steps


def test_every_episode_is_a_point_until_there_are_too_many() -> None:
    few, many = episodes(300), episodes(charts.MAX_POINTS + 1)
    figure = charts.x_position([("run", few)])
    accepted(figure)
    points = figure["data"][0]
    assert unpacked(points["x"]).tolist() == few.agent_steps.tolist()
    assert unpacked(points["y"]).tolist() == few.x_pos.tolist()
    assert unpacked(figure["wall"][0]) == pytest.approx(few.wall_s)
    thinned = charts.x_position([("run", many)])
    assert len(unpacked(thinned["data"][0]["x"])) == charts.MAX_POINTS
    assert thinned == charts.x_position([("run", many)])


@pytest.mark.parametrize("make", [charts.x_position, charts.clear_rate])
def test_several_runs_are_curves_of_their_own_colour_with_escaped_names(make: Any) -> None:
    figure = make([("<i>a</i>", episodes(200)), ("b", episodes(50)), ("none yet", episodes(0))])
    accepted(figure)
    named = [trace for trace in figure["data"] if "name" in trace]
    assert [trace["name"] for trace in named] == ["&lt;i&gt;a&lt;/i&gt;", "b", "none yet"]
    assert len({trace["line"]["color"] for trace in named}) == 3
    assert len(figure["wall"]) == len(figure["data"])


def test_episodes_that_were_reported_together_are_one_point_of_an_average() -> None:
    columns = dataclasses.replace(episodes(200), agent_steps=np.repeat(np.arange(20.0), 10))
    (line,) = [trace for trace in charts.clear_rate([("run", columns)])["data"] if "name" in trace]
    assert unpacked(line["x"]).tolist() == list(range(20))
    assert unpacked(line["y"])[-1] == pytest.approx(columns.cleared[-100:].mean())


def test_a_metric_keeps_its_spikes_and_its_gaps() -> None:
    value = np.zeros(5000)
    value[1234], value[4000] = 99.0, np.nan
    steps = np.arange(5000.0)
    figure = charts.metric("loss", [None, Series(steps, steps / 10, value)])
    accepted(figure)
    (trace,) = figure["data"]
    assert np.nanmax(unpacked(trace["y"])) == 99.0
    assert len(unpacked(trace["y"])) <= charts.MAX_CURVE_POINTS
    assert trace["line"]["color"] == charts.run_colour(1)


@pytest.mark.parametrize("level", ["1-1", "7-3"])
def test_failures_are_bars_by_cause_among_landmarks(level: str) -> None:
    figure = charts.failures([100, 120, 1110, 3161], ["death", "stall", "death", "flag"], level)
    accepted(figure)
    assert {bar["name"]: unpacked(bar["y"]).tolist() for bar in figure["data"]} == {
        "death": [1, 1],
        "stall": [1],
    }
    assert bool(figure["layout"]["shapes"]) == (level == "1-1")
