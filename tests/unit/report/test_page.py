"""The page as a whole, without a browser."""

import dataclasses
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mario_dist.report.judged import judgements
from mario_dist.report.page import build_page, clip_figure
from mario_dist.report.run_data import RunData, episode_columns, find_clip, series
from mario_dist.report.tables import heat_map, names
from mario_dist.store import EvaluationRow, MetricRow, RunRow

HOSTILE = "<script>alert(1)</script>"


def run(run_id: str = "r1", name: str = "probe", **metrics: list[float | None]) -> RunData:
    rows = [
        MetricRow(agent_steps=100 * (i + 1), wall_s=float(i), name=metric, value=value)  # type: ignore[typeddict-item]
        for metric, values in metrics.items()
        for i, value in enumerate(values)
    ]
    row = RunRow(
        id=run_id,
        name=name,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        seed=7,
        total_steps=1000,
        level="1-1",
        algo="ppo",
        config={"name": name, "seed": 7},
        directory=f"runs/{run_id}",
    )
    return RunData(row, Path(row.directory), episode_columns([], rows), series(rows), [])


def test_a_run_that_has_just_begun_has_a_page() -> None:
    page = build_page([run()], "made by a test")
    assert "No episode has ended yet." in page
    assert "mario-dist eval makes them" in page
    assert page == build_page([run()], "made by a test")


def test_a_hostile_name_is_text_everywhere() -> None:
    page = build_page([run(name=HOSTILE), run("r2", "tame")], HOSTILE)
    assert HOSTILE not in page
    assert page.count("<script") == 3


def test_nothing_names_another_machine() -> None:
    page = build_page([run(loss=[1.0, 2.0])], "made")
    outside = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", page)
    assert "http:" not in outside
    assert "https:" not in outside
    assert "connect-src" not in outside
    assert "default-src &#x27;none&#x27;" in outside


def test_what_never_changed_is_a_row_and_not_a_chart() -> None:
    page = build_page([run(loss=[1.0, 2.0], restarts=[0.0, 0.0], gone=[None, 1.0])], "made")
    assert ">restarts</td>" in page
    titles = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert titles == ["loss", "gone"]


def test_what_is_not_finite_is_missing() -> None:
    found = series([MetricRow(agent_steps=1, wall_s=2.0, name="loss", value=None)])  # type: ignore[typeddict-item]
    assert np.isnan(found["loss"].value).all()
    assert found["loss"].constant is None


def test_runs_of_one_name_are_called_by_their_ids() -> None:
    assert names([run("a", "x"), run("b", "y")]) == ["x", "y"]
    assert names([run("a", "x"), run("b", "x")]) == ["a", "b"]


def test_the_best_clip_comes_before_the_newest_and_a_large_one_is_only_named(tmp_path: Path) -> None:
    assert find_clip(tmp_path) is None
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("b.mp4", "best.mp4", "c.mp4"):
        (videos / name).write_bytes(b"x" * 100)
    assert find_clip(tmp_path) == videos / "best.mp4"
    (videos / "best.mp4").unlink()
    assert find_clip(tmp_path) == videos / "c.mp4"
    assert "data:video/mp4;base64,eHh4" in clip_figure(videos / "c.mp4", "c")
    assert clip_figure(videos / "c.mp4", "c", max_bytes=99).startswith('<p class="muted">c.mp4 is not here')


def test_many_levels_are_a_map_of_worlds_and_stages() -> None:
    protocol = {"name": "jitter-30", "version": 2}
    report = {
        "clear_rate": 0.5,
        "clear_rate_ci": [0.4, 0.6],
        "x_pos": {"mean": 1.0, "iqm": 1.0, "iqm_ci": [0.5, 1.5]},
        "episodes": 200,
        "per_level": {
            f"{w}-{s}": {"clear_rate": w / 8, "x_pos_mean": 10.0 * s} for w in (1, 8) for s in (1, 2)
        },
        "protocol": protocol,
    }
    row = EvaluationRow(agent_steps=5, path="c", protocol=json.dumps(protocol), report=report)
    (judgement,) = judgements([row], [])
    rows = re.findall(r"<tr>(.*?)</tr>", heat_map(judgement))
    cells = [re.findall(r">([^<>]+)<", row) for row in rows]
    assert cells[0] == ["world", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert cells[1] == ["1", "12%", "12%", "-", "-"]
    assert cells[2] == ["2", "-", "-", "-", "-"]
    assert cells[8] == ["8", "100%", "100%", "-", "-"]
    page = build_page([dataclasses.replace(run(), judgements=[judgement])], "made")
    assert "1-1, 1-2, 8-1, 8-2" in page
