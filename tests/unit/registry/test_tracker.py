import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mario_dist.registry import Tracker
from mario_dist.registry.tracker import METRICS_PER_BATCH, PARAM_LENGTH

CONFIG = "seed: 0\nalgo:\n  gamma: 0.9\n"


def test_a_run_holds_its_params_tags_config_and_metrics(tracker: Tracker) -> None:
    run_id = tracker.start("first", {"seed": 3, "algo.gamma": 0.9, "x": True}, CONFIG, {"level": "1-1"})
    for steps in range(0, 3000, 10):
        tracker.metrics(steps, {"loss/policy": steps / 2, "rollout/steps per s": 7.0})
    tracker.flush()
    run = tracker._client.get_run(run_id)
    assert run.info.run_name == "first"
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "3", "algo.gamma": "0.9", "x": "True"}
    assert run.data.tags["level"] == "1-1"
    assert _artifact(tracker, run_id, "config.yaml").read_text() == CONFIG
    history = tracker._client.get_metric_history(run_id, "loss/policy")
    assert sorted((m.step, m.value) for m in history) == [(s, s / 2) for s in range(0, 3000, 10)]
    assert (tracker.dropped, tracker.skipped) == (0, 0)


def test_one_call_may_hold_more_than_mlflow_takes_at_once(tracker: Tracker) -> None:
    params = {f"key.{n}": "v" * (PARAM_LENGTH + 10 if n == 0 else 1) for n in range(205)}
    run_id = tracker.start("large", params, CONFIG)
    tracker.metrics(5, {f"m{n}": float(n) for n in range(METRICS_PER_BATCH + 200)})
    tracker.flush()
    run = tracker._client.get_run(run_id)
    assert len(run.data.params) == 205
    assert len(run.data.metrics) == METRICS_PER_BATCH + 200
    assert tracker.dropped == 0


def test_values_that_are_not_finite_are_skipped_and_counted(tracker: Tracker) -> None:
    run_id = tracker.start("diverged", {}, CONFIG)
    tracker.metrics(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    tracker.flush()
    assert tracker._client.get_run(run_id).data.metrics == {"c": 1.0}
    assert (tracker.skipped, tracker.dropped) == (2, 0)


def test_a_name_that_mlflow_refuses_does_not_lose_its_batch(tracker: Tracker) -> None:
    run_id = tracker.start("names", {"a=b": 1}, CONFIG)
    tracker.metrics(1, {"clear rate (%)": 0.5, "loss": 1.0})
    tracker.flush()
    run = tracker._client.get_run(run_id)
    assert run.data.metrics == {"clear rate ___": 0.5, "loss": 1.0}
    assert run.data.params == {"a_b": "1"}


@pytest.mark.parametrize(
    ("status", "stored"), [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")]
)
def test_finish_sends_what_is_queued_and_ends_the_run(sqlite_uri: str, status: str, stored: str) -> None:
    tracker = Tracker(sqlite_uri, linger_s=60)
    run_id = tracker.start("end", {}, CONFIG)
    tracker.metrics(9, {"loss": 0.5})
    tracker.finish(status)  # type: ignore[arg-type]
    tracker.finish(status)  # type: ignore[arg-type]
    run = tracker._client.get_run(run_id)
    assert (run.info.status, run.data.metrics) == (stored, {"loss": 0.5})
    assert run.info.end_time is not None
    with pytest.raises(RuntimeError, match="start"):
        tracker.metrics(10, {"loss": 1.0})


def test_a_directory_becomes_artifacts(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "sub" / "manifest.json").write_text("{}")
    run_id = tracker.start("artifacts", {}, CONFIG)
    assert tracker.artifacts(tmp_path, "checkpoints/best")
    best = _artifact(tracker, run_id, "checkpoints/best")
    assert (best / "weights.safetensors").read_bytes() == bytes(range(256)) * 100
    assert (best / "sub" / "manifest.json").read_text() == "{}"


def test_a_resumed_run_goes_on(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    first = Tracker(uri)
    run_id = first.start("resumed", {"seed": 0, "lanes": 8}, CONFIG)
    first.metrics(10, {"loss": 1.0})
    first.finish("stopped")
    second = Tracker(uri)
    assert (
        second.start("resumed", {"seed": 0, "lanes": 16, "new": 1}, "seed: 1\n", resume_id=run_id) == run_id
    )
    assert second._client.get_run(run_id).info.status == "RUNNING"
    second.metrics(20, {"loss": 0.5})
    second.finish("finished")
    run = second._client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "lanes": "8", "new": "1"}
    assert "first values of lanes;" in caplog.text
    assert _artifact(second, run_id, "config.yaml").read_text() == "seed: 1\n"
    assert [m.step for m in second._client.get_metric_history(run_id, "loss")] == [10, 20]


@pytest.mark.parametrize("gone", ["0" * 32, "not an id!", "deleted"])
def test_a_run_that_is_gone_is_replaced_with_a_warning(
    uri: str, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(uri)
    if gone == "deleted":
        gone = tracker.start("old", {}, CONFIG)
        tracker.finish("stopped")
        tracker._client.delete_run(gone)
    run_id = tracker.start("new", {}, CONFIG, resume_id=gone)
    tracker.finish("finished")
    assert run_id != gone
    assert "a new one begins" in caplog.text


def test_a_failure_in_the_background_is_one_warning_and_counted(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = tracker.start("doomed", {}, CONFIG)
    tracker._client.delete_run(run_id)  # MLflow takes nothing for a deleted run
    caplog.set_level(logging.WARNING)
    for step in range(3):
        tracker.metrics(step, {"a": 1.0, "b": 2.0})
        tracker.flush()
    assert tracker.dropped == 6
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "the training goes on" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    tracker._client.restore_run(run_id)
    tracker.metrics(9, {"a": 3.0})
    tracker.finish("finished")
    assert tracker._client.get_run(run_id).data.metrics == {"a": 3.0}
    assert "MLflow missed 6 metric values" in caplog.text


def test_artifacts_that_cannot_be_read_are_a_warning(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.start("artifacts", {}, CONFIG)
    assert not tracker.artifacts(tmp_path / "missing", "best")
    assert "MLflow did not take" in caplog.text


def test_a_full_queue_drops_and_counts_and_never_blocks(sqlite_uri: str) -> None:
    tracker = Tracker(sqlite_uri, capacity=2, linger_s=60)
    run_id = tracker.start("full", {}, CONFIG)
    for step in range(50):
        tracker.metrics(step, {"a": 1.0, "b": 1.0})
    tracker.finish("finished")
    kept = len(tracker._client.get_metric_history(run_id, "a"))
    assert 2 <= kept <= 3  # the queue, and what the thread holds
    assert tracker.dropped == 2 * (50 - kept)


def test_sqlite_keeps_artifacts_beside_it_and_nothing_in_the_working_directory(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(sqlite_uri, "placed")
    run_id = tracker.start("placed", {}, CONFIG)
    tracker.finish("finished")
    artifacts = Path(sqlite_uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert tracker._client.get_run(run_id).info.artifact_uri == f"{artifacts.as_uri()}/{run_id}/artifacts"
    assert (artifacts / run_id / "artifacts" / "config.yaml").read_text() == CONFIG
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_experiment_is_restored(uri: str) -> None:
    first = Tracker(uri, "once-deleted")
    first._client.delete_experiment(first._experiment_id)
    second = Tracker(uri, "once-deleted")
    second.start("again", {}, CONFIG)
    second.finish("finished")
    assert second._experiment_id == first._experiment_id


def test_a_server_that_hangs_does_not_hold_up_the_training(
    server: Any, server_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(server_uri, linger_s=0.01)
    run_id = tracker.start("hangs", {}, CONFIG)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for step in range(100):
            tracker.metrics(step, {"a": 1.0})
        assert time.monotonic() - started < 1
        tracker.finish("finished")
        assert time.monotonic() - started < 15
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert tracker.dropped == 100
    assert "the training goes on" in caplog.text
    assert f"MLflow did not take the end of run {run_id}" in caplog.text
    assert "MLflow missed 100 metric values" in caplog.text


def _artifact(tracker: Tracker, run_id: str, path: str) -> Path:
    return Path(tracker._client.download_artifacts(run_id, path))
