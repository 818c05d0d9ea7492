"""Machines run together do what each does alone, whatever runs beside them and on however many threads."""

import numpy as np
import pytest

from mario_dist.emulator import RAM_BYTES, make_emulator, make_lanes, new_grey
from mario_dist.emulator.picture import AreaResizer
from mario_dist.env.starts import level_start

BACKENDS = pytest.mark.parametrize("backend", ["native", "nes-py"])
LEVELS = ("1-1", "2-1", "5-2", "4-4", "1-1")
SIZE, MASKED_ROWS, UNTOUCHED = (60, 71), 32, 7


@BACKENDS
@pytest.mark.parametrize("keep_pictures", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_subset_on_any_threads_is_each_alone(backend: str, keep_pictures: bool, threads: int) -> None:
    """Each lane beside a machine of its own that is stepped and looked at by hand; other rows stay."""
    rng = np.random.default_rng(threads)
    n = len(LEVELS)
    lanes = make_lanes(
        backend,
        n,
        frame_size=SIZE,
        masked_rows=MASKED_ROWS,
        threads=threads,
        keep_pictures=keep_pictures,
    )
    alone = [make_emulator(backend) for _ in range(n)]
    for level, lane, machine in zip(LEVELS, lanes.emulators, alone, strict=True):
        lane.load(level_start(backend, level))
        machine.load(level_start(backend, level))
    ram_NR = np.full((n, RAM_BYTES), UNTOUCHED, dtype=np.uint8)
    frame_NHW = np.full((n, *SIZE), UNTOUCHED, dtype=np.uint8)
    ram, frame, grey = ram_NR.copy(), frame_NHW.copy(), new_grey()
    resizer = AreaResizer(*SIZE, MASKED_ROWS)
    for m in (2, 0, 5, 1, *rng.integers(n + 1, size=16)):
        lanes_M = rng.permutation(n)[:m]
        joypad_M = rng.integers(256, size=m, dtype=np.uint8) & 0xF3  # without select and start
        frames_M = rng.integers(1, 6, size=m)
        for lane, joypad, frames in zip(lanes_M, joypad_M, frames_M, strict=True):
            for _ in range(frames):
                alone[lane].step(int(joypad))
            ram[lane] = alone[lane].ram
            alone[lane].grey(grey)
            resizer(grey, frame[lane])
        lanes.run(lanes_M, joypad_M, frames_M, ram_NR, frame_NHW)
        np.testing.assert_array_equal(ram_NR, ram)
        np.testing.assert_array_equal(frame_NHW, frame)
    for lane, machine in zip(lanes.emulators, alone, strict=True):
        assert lane.save() == machine.save()
    assert len({row.tobytes() for row in frame_NHW}) == n, "the lanes look alike"
    lanes.close()


@BACKENDS
def test_the_last_frames_picture_is_kept(backend: str) -> None:
    lanes, alone = make_lanes(backend, 2), make_emulator(backend)
    for machine in (*lanes.emulators, alone):
        machine.load(level_start(backend, "1-1"))
    ram_NR, frame_NHW = np.empty((2, RAM_BYTES), np.uint8), np.empty((2, 84, 84), np.uint8)
    for _ in range(4):
        lanes.run(np.array([1]), np.array([128], np.uint8), np.array([5]), ram_NR, frame_NHW)
        for _ in range(5):
            alone.step(128)
        np.testing.assert_array_equal(lanes.emulators[1].rgb(), alone.rgb())
    lanes.close()
