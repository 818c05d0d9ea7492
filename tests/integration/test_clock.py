"""A machine's clock that is set right, or wrong, while a training runs."""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from support.commands import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mario_dist.bench.chaos import _books
from mario_dist.bench.clock import LATE_S, Clock
from mario_dist.bench.outage import endless, reporting, trained
from mario_dist.config import RunConfig
from mario_dist.store import RunStore

DAY_S = 86_400
BOTH_CLOCKS = "import time; time.sleep(0.1); print(time.time(), time.monotonic())"


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    pytest.importorskip("libfaketime")
    return Clock(tmp_path / "clock")


def test_the_clock_jumps_and_monotonic_time_does_not(clock: Clock) -> None:
    def read() -> list[float]:
        told = subprocess.run(
            [sys.executable, "-c", BOTH_CLOCKS], env=clock.env, capture_output=True, text=True
        )
        return [float(number) for number in told.stdout.split()]

    for seconds, ahead in ((0, 0), (DAY_S, DAY_S), (-3 * DAY_S, -2 * DAY_S)):
        clock.jump(seconds)
        wall, monotonic = read()
        assert wall == pytest.approx(time.time() + ahead, abs=60.0)
        assert monotonic == pytest.approx(time.monotonic(), abs=60.0)


def test_a_training_bears_a_clock_that_jumps(
    clock: Clock,
    tmp_path: Path,
    probe_config: Callable[..., RunConfig],
    here: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, began = f"sqlite:///{tmp_path}/mario.db", time.monotonic()
    with RunStore(url) as store, trained(endless(probe_config()), url, tmp_path, clock.env) as training:
        run = training.wait_for(lambda: reporting(store))

        def goes_on() -> None:
            time.sleep(LATE_S)
            steps = store.newest_metrics(run.id)[0]["agent_steps"]
            training.wait_for(lambda: store.newest_metrics(run.id)[0]["agent_steps"] > steps + 256)

        clock.jump(DAY_S)
        goes_on()
        clock.jump(-2 * DAY_S)
        goes_on()
        training.stop()
        after = store.get_run(run.id)
        books = _books(store, run.id, tmp_path / run.id, time.monotonic() - began)
    assert after.status == "stopped"
    assert after.ended_at is not None
    assert after.ended_at < after.created_at - timedelta(hours=23)
    # It lived a day ahead, too: TensorBoard's events have the wall clock's time.
    events = EventAccumulator(str(tmp_path / run.id / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    seen = [event.wall_time for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    days = {round((wall_time - time.time()) / DAY_S) for wall_time in seen}
    assert days == {-1, 0, 1}
    assert books["wrong"] == []
    assert books["episodes"]["stored"] > 10
    monkeypatch.setenv("MARIO_DIST_DB", url)
    assert run.id in here("runs", "list").stdout
