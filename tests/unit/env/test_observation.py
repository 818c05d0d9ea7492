"""The policy's frame against an area average written from the definition."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from mario_dist.emulator import SCREEN_SHAPE, make_emulator, new_grey
from mario_dist.env.observation import empty_frames, observe
from mario_dist.env.starts import level_start
from mario_dist.types import U8


@cache
def area_weights(n_in: int, n_out: int) -> NDArray[np.float64]:
    """[n_out, n_in]: how much of each output cell every input cell covers."""
    scale = n_in / n_out
    weights = np.zeros((n_out, n_in))
    for out in range(n_out):
        for cell in range(n_in):
            overlap = min((out + 1) * scale, cell + 1) - max(out * scale, cell)
            weights[out, cell] = max(overlap, 0.0) / scale
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    return weights


def area_average(picture: U8, shape: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = area_weights(picture.shape[0], shape[0]), area_weights(picture.shape[1], shape[1])
    return rows @ picture.astype(np.float64) @ columns.T


def noise(seed: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, SCREEN_SHAPE, dtype=np.uint8)


@cache
def picture_of_1_1() -> bytes:
    lane, grey = make_emulator("auto"), new_grey()
    lane.load(level_start("auto", "1-1"))
    for _ in range(60):
        lane.step(128)
    lane.grey(grey)
    return grey.tobytes()


def screen() -> U8:
    return np.frombuffer(picture_of_1_1(), dtype=np.uint8).reshape(SCREEN_SHAPE).copy()


@pytest.mark.parametrize("hud_rows", [0, 32, 45])
@pytest.mark.parametrize("shape", [(84, 84), (96, 96), (42, 42), (60, 64), (120, 128), (84, 100), (240, 256)])
def test_the_frame_is_the_area_average(shape: tuple[int, int], hud_rows: int) -> None:
    for picture in (noise(0), screen()):
        masked = picture.copy()
        masked[:hud_rows] = 0
        frame = np.empty(shape, dtype=np.uint8)
        observe(picture.copy(), frame, hud_rows)
        assert np.abs(frame - area_average(masked, shape)).max() <= 1.0


def test_the_rows_of_the_hud_are_black_and_no_others() -> None:
    frame = np.full((84, 84), 7, dtype=np.uint8)
    observe(np.full(SCREEN_SHAPE, 200, dtype=np.uint8), frame, hud_rows=32)
    # 32 of 240 rows are the top 11.2 of 84.
    assert not frame[:11].any()
    assert (frame[11] == round(0.8 * 200)).all()
    assert (frame[12:] == 200).all()


def test_the_clock_is_not_seen() -> None:
    """Two pictures that differ in the HUD only are one observation."""
    a = screen()
    b = a.copy()
    b[:32] = 255 - b[:32]
    frames = empty_frames(2, (84, 84))
    observe(a, frames[0], 32)
    observe(b, frames[1], 32)
    np.testing.assert_array_equal(frames[0], frames[1])
    assert frames[0].any()


def test_one_lane_is_written_into_the_buffer_of_all() -> None:
    frames = empty_frames(3, (84, 100))
    assert frames.shape == (3, 84, 100)
    assert frames.dtype == np.uint8
    observe(noise(1), frames[1], 0)
    assert frames[1].any()
    assert not frames[0].any()
    assert not frames[2].any()
