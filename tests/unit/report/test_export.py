import csv
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

from mario_dist.errors import UserError
from mario_dist.report.export import export_run, wide
from mario_dist.store import EvaluationRow, RunRow, RunStore
from mario_dist.types import Episode, EpisodeRecord

EPISODE = Episode(
    lane=3,
    level="1-1",
    world=1,
    stage=1,
    episode_return=0.1 + 0.2,
    length=240,
    x_pos_max=1000,
    score=400,
    coins=2,
    time_left=311,
    life=2,
    status="small",
    flag_get=True,
    end="flag",
    seconds=1.25,
)


@pytest.fixture
def store(own_runs: Path) -> Iterator[RunStore]:
    row = RunRow(id="r1", name="r", seed=0, total_steps=9, level="1-1", algo="ppo", config={}, directory="r")
    with RunStore(f"sqlite:///{own_runs}/mario.db") as opened:
        opened.create_run(row)
        yield opened


def test_every_episode_metric_and_evaluation_is_there(store: RunStore, tmp_path: Path) -> None:
    store.add_episodes("r1", 64, [EpisodeRecord(0, 0, n, 5, EPISODE) for n in range(3)])
    store.add_metrics("r1", 64, 1.5, {"loss": 0.1 + 0.2, "entropy": 1.9})
    store.add_metrics("r1", 128, 2.5, {"loss": float("nan"), "eval/clear_rate": 0.5})
    store.add_evaluation(
        "r1", EvaluationRow(agent_steps=128, path="p", protocol="{}", report={"clear_rate": 0.5})
    )
    written = export_run(store, store.get_run("r1"), tmp_path / "deep" / "out")
    assert [path.name for path in written] == ["episodes.csv", "metrics.csv", "evaluations.json"]
    episodes = list(csv.DictReader(StringIO(written[0].read_text())))
    assert [row["sequence"] for row in episodes] == ["0", "1", "2"]
    assert float(episodes[0]["episode_return"]) == 0.1 + 0.2, "to the last bit"
    assert (episodes[0]["end"], episodes[0]["flag_get"], episodes[0]["lane"]) == ("flag", "True", "3")
    metrics = list(csv.DictReader(StringIO(written[1].read_text())))
    assert [row["agent_steps"] for row in metrics] == ["64", "128"]
    assert [row["entropy"] for row in metrics] == ["1.9", ""]
    assert [row["loss"] for row in metrics] == [str(0.1 + 0.2), "nan"]
    (evaluation,) = json.loads(written[2].read_text())
    assert (evaluation["agent_steps"], evaluation["report"]) == (128, {"clear_rate": 0.5})


def test_a_run_without_rows_gives_empty_files(store: RunStore, tmp_path: Path) -> None:
    written = export_run(store, store.get_run("r1"), tmp_path)
    assert [path.read_text().strip() for path in written] == ["", "", "[]"]


def test_where_it_cannot_write_it_says_so(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        export_run(store, store.get_run("r1"), tmp_path / "file")


def test_wide_keeps_the_order_of_steps() -> None:
    make: Callable[..., object] = lambda s, n: {"agent_steps": s, "wall_s": s / 2, "name": n, "value": 1.0}  # noqa: E731
    rows = [make(64, "a"), make(64, "b"), make(128, "a")]
    assert wide(rows) == [  # type: ignore[arg-type]
        {"agent_steps": 64, "wall_s": 32.0, "a": 1.0, "b": 1.0},
        {"agent_steps": 128, "wall_s": 64.0, "a": 1.0},
    ]
