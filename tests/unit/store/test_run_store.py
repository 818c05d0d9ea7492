import dataclasses
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from mario_dist.errors import UserError
from mario_dist.store import CheckpointRow, EvaluationRow, RunRow, RunStore
from mario_dist.store.run_store import resolve
from mario_dist.types import EpisodeRecord

MakeRun = Callable[..., RunRow]
MakeRecord = Callable[..., EpisodeRecord]


def test_a_run_comes_back_as_it_was_stored(store: RunStore, make_run: MakeRun) -> None:
    elsewhere = timezone(timedelta(hours=5, minutes=30))
    created_at = datetime(2026, 3, 1, 4, 5, 6, 789, tzinfo=elsewhere)
    run = make_run("r1", created_at=created_at, config={"z": 1, "a": [1, {"deep": None}]}, seed=2**40)
    store.create_run(run)
    loaded = store.get_run("r1")
    assert loaded == run
    assert loaded.created_at.tzinfo is UTC
    assert list(loaded.config) == ["z", "a"]  # as resolved, in its order


def test_update_changes_what_is_given_and_ended_at_follows_the_status(
    store: RunStore, make_run: MakeRun
) -> None:
    before = make_run("r1", updated_at=datetime(2026, 1, 1, tzinfo=UTC))
    store.create_run(before)
    store.update_run("r1", agent_steps=500, mlflow_run_id="m1")
    running = store.get_run("r1")
    assert (running.agent_steps, running.mlflow_run_id) == (500, "m1")
    assert (running.status, running.ended_at, running.name) == ("running", None, "test")
    assert running.updated_at > before.updated_at
    store.update_run("r1", status="stopped")
    stopped = store.get_run("r1")
    assert stopped.ended_at == stopped.updated_at
    store.update_run("r1", status="running")
    assert store.get_run("r1").ended_at is None
    at = datetime(2026, 2, 2, tzinfo=UTC)
    store.update_run("r1", status="finished", ended_at=at)
    assert store.get_run("r1").ended_at == at


def test_an_evaluation_is_kept_with_its_checkpoint_and_a_repeated_one_once(
    store: RunStore, make_run: MakeRun
) -> None:
    store.create_run(make_run("r1"))
    report = {
        "clear_rate": 0.25,
        "per_level": {"1-1": {"played": {"x_pos": [1, 2], "end": ["death", "flag"]}}},
    }
    rows = [
        EvaluationRow(agent_steps=steps, path=f"/r1/step-{steps}", protocol=protocol, report=report)
        for steps, protocol in ((200, "a"), (100, "a"), (100, "b"))
    ]
    for row in rows:
        store.add_evaluation("r1", row)
    assert store.evaluations("r1") == [rows[1], rows[2], rows[0]]
    again = dataclasses.replace(rows[2], report={"clear_rate": 0.5})
    store.add_evaluation("r1", again)
    assert [row.report["clear_rate"] for row in store.evaluations("r1")] == [0.25, 0.5, 0.25]
    assert store.evaluations("other") == []
    store.rewind("r1", 150)
    assert [row.agent_steps for row in store.evaluations("r1")] == [100, 100]


def test_update_of_an_unknown_run_is_an_error(store: RunStore) -> None:
    with pytest.raises(UserError, match="no run 'nope'"):
        store.update_run("nope", agent_steps=1)


def test_runs_are_listed_newest_first(store: RunStore, make_run: MakeRun) -> None:
    for day, run_id in ((2, "b"), (3, "c"), (1, "a")):
        store.create_run(make_run(run_id, created_at=datetime(2026, 1, day, tzinfo=UTC)))
    assert [run.id for run in store.list_runs()] == ["c", "b", "a"]
    assert [run.id for run in store.list_runs(limit=2)] == ["c", "b"]
    assert store.get_run("latest").id == "c"


def test_a_run_is_found_by_its_id_and_by_a_prefix(store: RunStore, make_run: MakeRun) -> None:
    for run_id in ("ppo-1", "ppo-12", "other", "p%"):
        store.create_run(make_run(run_id))
    assert store.get_run("ppo-1").id == "ppo-1"
    assert store.get_run("oth").id == "other"
    assert store.get_run("p%").id == "p%"
    with pytest.raises(UserError, match=r"'ppo' is ambiguous: ppo-12?, ppo-12?$"):
        store.get_run("ppo")


def test_a_run_is_found_by_exactly_its_id(store: RunStore, make_run: MakeRun) -> None:
    run = make_run("r12")
    store.create_run(run)
    assert store.find_run("r12") == run
    assert store.find_run("r1") is None
    assert store.find_run(None) is None


@pytest.mark.parametrize(
    ("ref", "ids", "message"),
    [
        ("x", [], "no run has been stored yet"),
        ("ppo-0301-abd", ["ppo-0301-abc", "other"], r"did you mean ppo-0301-abc\?"),
        ("zzz", ["new", "old"], "the newest is new"),
        ("", ["new"], "there is no run ''"),
        ("a", ["a1", "a2", "a3", "a4", "a5"], "ambiguous: a1, a2, a3 and 2 more"),
        ("a\nb", ["new"], "there is no run"),
    ],
)
def test_what_cannot_be_resolved_is_one_clear_line(ref: str, ids: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(ref, ids)
    assert "\n" not in str(caught.value)


def test_every_field_of_an_episode_comes_back(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    stored = record(5, actor=1, incarnation=2, end="flag", flag_get=True, status="fireball")
    store.add_episodes("r1", 128, [stored])
    [row] = store.episodes("r1")
    expected = {f.name: getattr(stored, f.name) for f in dataclasses.fields(stored) if f.name != "episode"}
    episode = dataclasses.asdict(stored.episode)
    del episode["frames"]
    assert row == {"agent_steps": 128, **expected, **episode}


def test_numpy_scalars_are_stored_as_numbers(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    stored = record(
        0,
        x_pos_max=np.int64(77),
        episode_return=np.float32(1.5),
        flag_get=np.bool_(True),
        seconds=np.float64(2),
    )
    store.add_episodes("r1", 1, [stored])
    store.add_metrics("r1", 1, np.float64(0.5), {"loss": np.float32(0.25)})
    [row] = store.episodes("r1")
    assert (row["x_pos_max"], row["episode_return"], row["flag_get"]) == (77, 1.5, True)
    assert [type(row[key]) for key in ("x_pos_max", "episode_return", "flag_get")] == [int, float, bool]
    assert store.metrics("r1")[0]["value"] == 0.25


def test_the_same_episode_is_stored_once(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    store.create_run(make_run("r1"))
    store.create_run(make_run("r2"))
    rows = [record(n, actor=a, incarnation=i) for n in range(3) for a in range(2) for i in range(2)]
    for _ in range(2):
        store.add_episodes("r1", 10, rows)
    store.add_episodes("r1", 20, [record(0, score=1), record(0, score=2)])
    store.add_episodes("r2", 10, rows[:1])
    assert store.episode_summary("r1")["count"] == 12
    [replaced] = store.episodes("r1", since_steps=20)
    assert (replaced["agent_steps"], replaced["score"]) == (20, 2)
    assert len(store.episodes("r2")) == 1


def test_an_episode_of_an_unknown_run_is_refused(store: RunStore, record: MakeRecord) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        store.add_episodes("nope", 1, [record(0)])


def test_the_summary_looks_at_the_newest_hundred(
    store: RunStore, make_run: MakeRun, record: MakeRecord
) -> None:
    store.create_run(make_run("r1"))
    assert store.episode_summary("r1") == {
        "count": 0,
        "flags": 0,
        "best_x": None,
        "mean_x_last_100": None,
        "mean_return_last_100": None,
    }
    old = [record(n, x_pos_max=3161, flag_get=True, episode_return=99.0) for n in range(30)]
    # The newest by agent steps, whichever actor they come from and whenever they arrive.
    new = [record(n, actor=1, x_pos_max=n, episode_return=float(n)) for n in range(100)]
    store.add_episodes("r1", 900, new)
    store.add_episodes("r1", 100, old)
    summary = store.episode_summary("r1")
    assert (summary["count"], summary["flags"], summary["best_x"]) == (130, 30, 3161)
    assert summary["mean_x_last_100"] == pytest.approx(49.5)
    assert summary["mean_return_last_100"] == pytest.approx(49.5)


def test_metrics_are_upserted_and_selected_by_name(store: RunStore, make_run: MakeRun) -> None:
    store.create_run(make_run("r1"))
    store.add_metrics("r1", 20, 2.0, {"loss": 0.5, "kl": 0.1})
    store.add_metrics("r1", 10, 1.0, {"loss": 1.0})
    store.add_metrics("r1", 20, 2.5, {"loss": 0.25})
    assert [(m["agent_steps"], m["name"], m["value"]) for m in store.metrics("r1")] == [
        (10, "loss", 1.0),
        (20, "kl", 0.1),
        (20, "loss", 0.25),
    ]
    assert [m["wall_s"] for m in store.metrics("r1", ["loss"])] == [1.0, 2.5]
    assert store.metrics("r1", []) == []


def test_a_diverged_metric_is_kept(store: RunStore, make_run: MakeRun) -> None:
    store.create_run(make_run("r1"))
    store.add_metrics("r1", 1, 0.0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    a, b, c = (m["value"] for m in store.metrics("r1"))
    assert math.isnan(a)
    assert (b, c) == (math.inf, -math.inf)


def test_checkpoints_are_upserted_by_path(store: RunStore, make_run: MakeRun) -> None:
    store.create_run(make_run("r1"))
    first = CheckpointRow(agent_steps=100, path="checkpoints/100", kind="latest")
    best = CheckpointRow(agent_steps=50, path="checkpoints/best", kind="best", evaluation={"clear_rate": 0.1})
    store.add_checkpoint("r1", first)
    store.add_checkpoint("r1", best)
    better = dataclasses.replace(
        best, agent_steps=200, evaluation={"clear_rate": np.float32(0.5), "x": math.nan}
    )
    store.add_checkpoint("r1", better)
    assert store.checkpoints("r1") == [
        first,
        dataclasses.replace(better, evaluation={"clear_rate": 0.5, "x": None}),
    ]


def test_rewind_forgets_what_came_after(store: RunStore, make_run: MakeRun, record: MakeRecord) -> None:
    for run_id in ("r1", "r2"):
        store.create_run(make_run(run_id, agent_steps=300))
        for steps in (100, 200, 300):
            store.add_episodes(run_id, steps, [record(steps)])
            store.add_metrics(run_id, steps, 1.0, {"loss": 1.0})
            store.add_checkpoint(run_id, CheckpointRow(agent_steps=steps, path=str(steps), kind="latest"))
    assert store.rewind("r1", 200) == 3
    assert store.rewind("r1", 200) == 0
    assert [row["agent_steps"] for row in store.episodes("r1")] == [100, 200]
    assert [row["agent_steps"] for row in store.metrics("r1")] == [100, 200]
    assert [row.agent_steps for row in store.checkpoints("r1")] == [100, 200]
    assert store.get_run("r1").agent_steps == 200
    assert len(store.episodes("r2")) == len(store.metrics("r2")) == len(store.checkpoints("r2")) == 3
    assert store.get_run("r2").agent_steps == 300


def test_thousands_of_rows_in_one_call_are_quick(
    store: RunStore, make_run: MakeRun, record: MakeRecord
) -> None:
    store.create_run(make_run("r1"))
    started = time.perf_counter()
    store.add_episodes("r1", 1, [record(n) for n in range(5000)])
    assert time.perf_counter() - started < 10  # not one round trip per row
    assert store.episode_summary("r1")["count"] == 5000
