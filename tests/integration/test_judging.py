"""`eval` and `runs compare` through the command line, on a checkpoint of a real run on the real ROM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import Result

from mario_dist.config import parse
from mario_dist.registry import default_tracking_uri
from mario_dist.store import RunStore
from mario_dist.system.run import run_training

CONFIG = parse(
    {
        "name": "judged",
        "total_steps": 96,
        "env": {"frame_size": [42, 42]},
        "network": {"hidden": 32},
        "algo": {"epochs": 1, "minibatch": 48},
        "rollout": {"lanes": 4, "unroll_length": 24},
        "system": {"driver": "local"},
        "evaluation": {"every_steps": 0},
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Path:
    """A runs folder with one short run in it."""
    runs = tmp_path_factory.mktemp("judged")
    urls = {"store_url": f"sqlite:///{runs}/mario.db", "tracking_uri": tracking_uri}
    run_training(CONFIG, runs, **urls)
    return runs


@pytest.fixture
def runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARIO_DIST_RUNS", str(trained))
    return trained


Here = Callable[..., Result]


def judged(here: Here, *arguments: str) -> dict[str, Any]:
    done = here(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    document.pop("seconds", None)
    return document


def test_the_same_protocol_and_seed_give_the_same_report_kept_with_the_checkpoint(
    runs: Path, here: Here
) -> None:
    asked = ("eval", "latest", "--episodes", "20", "--levels", "1-1,4-1", "--max-steps", "120")
    report, again = judged(here, *asked, "--no-log"), judged(here, *asked)
    assert report == again
    assert judged(here, *asked, "--seed", "1", "--no-log")["per_level"] != report["per_level"]
    assert report["episodes"] == 40
    assert report["protocol"]["name"] == "custom", "--max-steps is none of jitter-30's"
    assert report["protocol"]["max_steps"] == 120
    for level in ("1-1", "4-1"):
        result = report["per_level"][level]
        assert result["episodes"] == len(result["played"]["x_pos"]) == 20
        assert max(result["played"]["agent_steps"]) <= 120
        assert sum(place["episodes"] for place in result["failures"]) == 20

    with RunStore(f"sqlite:///{runs}/mario.db") as store:
        run = store.get_run("latest")
        (row,) = store.evaluations(run.id)
    assert row.agent_steps == 96
    assert row.path == report["checkpoint"]
    assert row.report["per_level"] == report["per_level"]
    assert row.report["clear_rate_ci"] == report["clear_rate_ci"]

    shown = here("runs", "show", "latest")
    assert "judged" in shown.stdout
    assert "custom v2: 1-1,4-1, 20 episodes each" in shown.stdout

    from mlflow import MlflowClient

    client = MlflowClient(default_tracking_uri())
    metrics = client.get_run(str(run.mlflow_run_id)).data.metrics
    assert metrics["eval/custom/x_pos_mean"] == pytest.approx(report["x_pos"]["mean"])
    assert metrics["eval/custom/clear_rate"] == 0.0
    files = [file.path for file in client.list_artifacts(str(run.mlflow_run_id), "evaluations")]
    assert [file.rpartition("-")[0] for file in files] == ["evaluations/step-96-custom-seed-0"]
    assert judged(here, "eval", "latest", "--episodes", "1", "--max-steps", "9")["episodes"] == 1
    files = [file.path for file in client.list_artifacts(str(run.mlflow_run_id), "evaluations")]
    assert len(files) == 2, "another protocol's report does not take the place of the first"


@pytest.mark.usefixtures("beside_other_rays")
def test_on_ray_it_is_the_same_report(runs: Path, here: Here) -> None:
    asked = ("eval", "latest", "--episodes", "6", "--levels", "1-1,2-1", "--max-steps", "60", "--no-log")
    assert judged(here, *asked, "--address", "local") == judged(here, *asked)


def test_a_map_of_levels_for_people(runs: Path, here: Here) -> None:
    done = here("eval", "baseline:right", "--episodes", "1", "--levels", "all", "--max-steps", "40")
    assert done.returncode == 0, done.stderr
    assert "32 levels, 1 episodes each" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line[:2].strip().isdigit()]
    assert [row[0] for row in rows] == [str(world) for world in range(1, 9)]
    assert all(row.count("x") == 4 for row in rows)


def test_compare_plays_what_is_missing_once_and_says_what_it_found(runs: Path, here: Here) -> None:
    asked = ("runs", "compare", "baseline:right", "baseline:random", "latest", "--episodes", "30")
    first = here(*asked)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("playing 30 episodes") == 3
    assert "p is corrected for the number of tests (Holm)" in first.stdout
    document = judged(here, *asked)
    assert [c["target"] for c in document["comparisons"][:1]] == ["baseline:random"]
    rate, x = document["comparisons"][0]["measures"]
    assert (rate["measure"], rate["verdict"]) == ("clear rate", "not distinguishable")
    assert (x["measure"], x["verdict"]) == ("x-position", "better"), "right alone dies at the first enemy"
    assert x["interval"][0] < x["difference"] < x["interval"][1]
    second = here(*asked)
    assert second.stderr.count("playing 30 episodes") == 2, "the run's own report is in the store"
    assert second.stdout == first.stdout
