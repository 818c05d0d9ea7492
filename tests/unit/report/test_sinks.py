"""TensorBoard's event file: what is in it, and that a full disk ends it and nothing else."""

from pathlib import Path

import pytest
from support.disks import largest_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mario_dist.errors import UserError
from mario_dist.report.sinks import TensorBoardSink

NAMES = [f"group/metric_{n}" for n in range(20)]


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_a_resumed_run_hides_what_was_written_of_later_steps(tmp_path: Path) -> None:
    first = TensorBoardSink(tmp_path / "events", None)
    for steps in (10, 20, 30):
        first.metrics(steps, {"loss": steps / 10})
    first.close()
    second = TensorBoardSink(tmp_path / "events", 10)
    second.metrics(20, {"loss": 5.0})
    second.close()
    assert [(e.step, e.value) for e in read(tmp_path / "events").Scalars("loss")] == [(10, 1.0), (20, 5.0)]


@pytest.mark.timeout(60)
def test_a_full_disk_ends_the_file_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = TensorBoardSink(tmp_path / "events", None)
    with largest_file(20_000):
        for steps in range(200):
            sink.metrics(steps, dict.fromkeys(NAMES, float(steps)))
    sink.metrics(200, {"late": 1.0})  # there is room again, but half an event may be in the file
    sink.close()
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard's event file ends here: File too large"
    ]
    written = [event.step for event in read(tmp_path / "events").Scalars(NAMES[0])]
    assert written == list(range(len(written)))
    assert 5 < len(written) < 200


def test_a_place_that_takes_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(
        UserError, match=r"cannot write TensorBoard's event file .*tracking.tensorboard=false"
    ):
        TensorBoardSink(tmp_path / "events", None)
