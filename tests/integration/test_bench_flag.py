"""Time to the flag: what is read from a run, and whole trainings on the probe, whose corridor ends in one."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from support.commands import Result

from mario_dist.bench.flag import _summary, judged_by, read_run
from mario_dist.config import RunConfig, to_tree
from mario_dist.store import EpisodeRow, MetricRow


def metric(steps: int, wall_s: float, **values: float) -> list[MetricRow]:
    return [
        MetricRow(agent_steps=steps, wall_s=wall_s, name=name.replace("__", "/"), value=value)
        for name, value in values.items()
    ]


def episode(steps: int, flag: bool) -> EpisodeRow:
    return cast(EpisodeRow, {"agent_steps": steps, "flag_get": flag})


def test_the_time_of_evaluations_is_not_the_trainings() -> None:
    metrics = [
        *metric(100, 10.0, loss=1.0),
        *metric(200, 25.0, eval__clear_rate=0.4, eval__x_pos_mean=900.0, eval__seconds=5.0),
        *metric(200, 20.0, x_pos_mean=900.0),
        *metric(300, 35.0, loss=1.0),
        *metric(400, 60.0, eval__clear_rate=0.96, eval__x_pos_mean=3000.0, eval__seconds=6.0),
        *metric(400, 68.0, stop__clear_rate=0.97, stop__x_pos_mean=3000.0, stop__seconds=8.0),
        *metric(500, 80.0, loss=1.0),
    ]
    told = [episode(100, False), episode(250, True), episode(300, True)]
    found = read_run(metrics, told, 0.97)
    assert found["curve"] == [(200, 20.0, 0.4, 900.0), (400, 49.0, 0.96, 3000.0)]
    assert found["marks"] == {
        "first flag": (250, 30.0),
        "50%": (400, 49.0),
        "95%": (400, 49.0),
        "99%": None,
        "end by stop": (400, 49.0),
    }
    for goal in (0.98, None):
        assert read_run(metrics, told, goal)["marks"]["end by stop"] is None
    assert found["evaluation_s"] == 19.0
    assert found["agent_steps"] == 500
    assert found["train_s"] == 61.0
    assert found["agent_steps_per_s"] == pytest.approx(500 / 61)
    assert found["best"] == 0.96


def test_a_seed_that_never_got_there_counts_as_infinity() -> None:
    def run(steps: int | None) -> dict[str, Any]:
        marks = {"95%": None if steps is None else (steps, steps * 60.0)}
        return {"marks": marks, "agent_steps_per_s": 1.0}

    two = _summary([run(100), run(None), run(300)])["marks"]["95%"]
    assert two["reached"] == 2
    assert two["agent_steps"] == {"median": 300, "least": 100, "most": None}
    assert two["minutes"]["median"] == 300.0
    one = _summary([run(100), run(None), run(None)])["marks"]["95%"]
    assert one["agent_steps"] == {"median": None, "least": 100, "most": None}
    assert json.loads(json.dumps(one, allow_nan=False)) == one


@pytest.fixture
def learnable(tmp_path: Path, probe_config: Callable[..., RunConfig]) -> Path:
    config = probe_config(
        total_steps=40_000,
        algo={"lr": [3e-3, 3e-3], "epochs": 4},
        rollout={"lanes": 8, "unroll_length": 32},
        evaluation={"every_steps": 1024},
        stop={"clear_rate": 0.99, "episodes": 30},
    )
    path = tmp_path / "corridor.yaml"
    path.write_text(yaml.safe_dump(to_tree(config)))
    return path


def test_whole_trainings_are_timed(here: Callable[..., Result], learnable: Path, tmp_path: Path) -> None:
    out = tmp_path / "flag.json"
    words = ("--config", str(learnable), "--seeds", "2", "--every", "1024", "--episodes", "20")
    result = here("bench", "flag", *words, "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text())
    assert document["machine"]["cores"] >= 1
    corridor = document["configs"]["corridor"]
    assert [run["seed"] for run in corridor["runs"]] == [0, 1]
    for run in corridor["runs"]:
        assert run["protocol"] == "jitter-30"
        assert run["agent_steps"] < 40_000, "it ends by itself"
        (first, first_s), (half, half_s) = run["marks"]["first flag"], run["marks"]["50%"]
        assert 0 < first <= half <= run["agent_steps"]
        assert 0.0 < first_s <= half_s <= run["train_s"]
        assert run["evaluation_s"] > 0.0
        assert all(math.isfinite(x) for point in run["curve"] for x in point)
    marks = corridor["marks"]["50%"]
    assert marks["reached"] == 2
    steps = [run["marks"]["50%"][0] for run in corridor["runs"]]
    assert marks["agent_steps"] == {"median": sum(steps) / 2, "least": min(steps), "most": max(steps)}
    listed = here("runs", "list", "--json")
    assert {run["run"] for run in corridor["runs"]} <= {row["id"] for row in json.loads(listed.stdout)}


def test_what_is_asked_of_no_configuration_is_refused(here: Callable[..., Result]) -> None:
    result = here("bench", "flag", "--config", "nowhere.yaml")
    assert result.returncode == 1
    assert "there is no configuration file nowhere.yaml" in result.stderr


def test_what_would_lose_the_figures_is_refused_before_training(
    here: Callable[..., Result], learnable: Path, tmp_path: Path
) -> None:
    config = str(learnable)
    other = tmp_path / "other" / learnable.name
    other.parent.mkdir()
    other.write_text(learnable.read_text())
    for words, says in (
        (("--config", config, "--config", str(other)), "two configurations of one name"),
        (("--config", config, "--out", str(tmp_path / "nowhere" / "it.json")), "cannot write to"),
        (("--config", config, "stop.protocol=sticky-25"), "cannot be by stop.protocol=sticky-25"),
    ):
        result = here("bench", "flag", *words)
        assert result.returncode == 1, result.stderr
        assert says in result.stderr
    assert "[]" in here("runs", "list", "--json").stdout, "nothing was trained"


def test_the_evaluations_are_by_the_protocol_that_is_named() -> None:
    assert (judged_by("fixed-start", 7, 9).noop_max, judged_by("fixed-start", 7, 9).greedy) == (0, False)
    assert (judged_by("jitter-30-greedy", 7, 9).noop_max, judged_by("jitter-30-greedy", 7, 9).greedy) == (
        30,
        True,
    )
    assert (judged_by("jitter-30", 7, 9).every_steps, judged_by("jitter-30", 7, 9).episodes) == (7, 9)
