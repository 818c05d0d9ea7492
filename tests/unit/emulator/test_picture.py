"""The policy's frame against an area average in whole numbers, written from the definition."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mario_dist.emulator import RAM_BYTES, SCREEN_SHAPE, _native, make_lanes, new_grey
from mario_dist.emulator.native import NativeLanes
from mario_dist.emulator.picture import AreaResizer
from mario_dist.env.starts import level_start
from mario_dist.types import U8

SHAPES = [
    *((84, 84), (83, 71), (30, 20), (96, 96), (42, 42), (60, 64), (120, 128), (84, 100), (239, 255)),
    *((240, 256), (240, 20), (20, 256), (1, 256), (240, 1), (1, 1), (7, 3), (128, 129), (16, 36)),
]

# Shows what a ROM has at 0x9000: 32 bytes of palette, and, at 0x9100, 256 tiles' names again and again.
SHOW = bytes.fromhex(
    "a9008d0120"  # rendering off
    "a93f8d0620a9008d0620a200bd00908d0720e8e020d0f5"  # the palette
    "a9208d0620a9008d0620a200a004bd00918d0720e8d0f788d0f4"  # the name table
    "a9008d00208d05208d0520a91e8d0120"  # scrolled to its beginning, rendering on
    "4c4680"  # for ever
)


def noise_rom() -> bytes:
    """A cartridge that shows random tiles in random colours."""
    rng = np.random.default_rng(0)
    program = rng.integers(256, size=0x4000, dtype=np.uint8)
    program[: len(SHOW)] = np.frombuffer(SHOW, dtype=np.uint8)
    program[0x1000:0x1020] &= 0x3F
    program[0x3FFC:0x3FFE] = (0x00, 0x80)
    patterns = rng.integers(256, size=0x2000, dtype=np.uint8)
    return b"NES\x1a\x01\x01" + bytes(10) + program.tobytes() + patterns.tobytes()


def overlaps(source: int, target: int) -> NDArray[np.int64]:
    """[target, source]: what each target pixel covers of each source pixel, in parts of 1 / target."""
    parts = np.zeros((target, source), dtype=np.int64)
    for out in range(target):
        for pixel in range(out * source // target, -(-(out + 1) * source // target)):
            parts[out, pixel] = min((out + 1) * source, (pixel + 1) * target) - max(
                out * source, pixel * target
            )
    assert (parts.sum(axis=1) == source).all()
    return parts


def area_mean(grey: U8, shape: tuple[int, int], masked_rows: int) -> U8:
    """The mean of what each pixel covers, to the nearest whole number and halves up."""
    masked = grey.astype(np.int64)
    masked[:masked_rows] = 0
    total = overlaps(240, shape[0]) @ masked @ overlaps(256, shape[1]).T
    return ((2 * total + 240 * 256) // (2 * 240 * 256)).astype(np.uint8)


def resized(grey: U8, shape: tuple[int, int], masked_rows: int = 0) -> U8:
    out = np.full(shape, 7, dtype=np.uint8)
    AreaResizer(*shape, masked_rows)(grey, out)
    return out


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rom = tmp_path_factory.mktemp("rom") / "noise.nes"
    rom.write_bytes(noise_rom())
    return rom


def run(lanes: NativeLanes, shape: tuple[int, int], frames: int) -> U8:
    frame_1HW = np.full((1, *shape), 7, dtype=np.uint8)
    ram_1R = np.empty((1, RAM_BYTES), dtype=np.uint8)
    lanes.run(np.array([0]), np.array([128], dtype=np.uint8), np.array([frames]), ram_1R, frame_1HW)
    return frame_1HW[0]


@cache
def screen_of_1_1() -> bytes:
    lane, grey = make_lanes("native", 1).emulators[0], new_grey()
    lane.load(level_start("native", "1-1"))
    for _ in range(60):
        lane.step(128)
    lane.grey(grey)
    return grey.tobytes()


def screen() -> U8:
    return np.frombuffer(screen_of_1_1(), dtype=np.uint8).reshape(SCREEN_SHAPE).copy()


def random_picture() -> U8:
    return np.random.default_rng(0).integers(0, 256, SCREEN_SHAPE, dtype=np.uint8)


def rounds_everywhere() -> U8:
    """Black and white in a way that many pixels' means are half a number."""
    rows, columns = np.indices(SCREEN_SHAPE)
    return (255 * ((rows + columns) % 2)).astype(np.uint8)


@pytest.mark.parametrize("masked_rows", [0, 32, 45])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_frame_is_the_area_mean(shape: tuple[int, int], masked_rows: int) -> None:
    for grey in (random_picture(), screen(), rounds_everywhere(), np.full(SCREEN_SHAPE, 255, np.uint8)):
        expected = area_mean(grey, shape, masked_rows)
        np.testing.assert_array_equal(resized(grey, shape, masked_rows), expected)
        masked = grey.copy()
        masked[:masked_rows] = 0
        by_cv2 = cv2.resize(masked, shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(by_cv2.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("masked_rows", [0, 32, 45, 239])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_native_frame_is_the_area_mean(shape: tuple[int, int], masked_rows: int, noise: Path) -> None:
    """Of pictures that are noise, and the same whether pictures are kept or not."""
    kept, not_kept = (NativeLanes(noise, 1, shape, masked_rows, 1, keep) for keep in (True, False))
    grey = new_grey()
    for frames in (3, 1):
        frame = run(kept, shape, frames)
        kept.emulators[0].grey(grey)
        assert len(np.unique(grey)) > 8, "the picture is no noise"
        np.testing.assert_array_equal(frame, area_mean(grey, shape, masked_rows))
        np.testing.assert_array_equal(frame, resized(grey, shape, masked_rows))
        np.testing.assert_array_equal(frame, run(not_kept, shape, frames))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_native_resizer_knows_all_colours(shape: tuple[int, int]) -> None:
    """Each of the 64; what they look like in grey is what a frame as large as the picture shows."""
    colours = np.random.default_rng(1).integers(64, size=SCREEN_SHAPE, dtype=np.uint8)
    grey, frame = new_grey(), np.full(shape, 7, dtype=np.uint8)
    _native.AreaResizer(*SCREEN_SHAPE, 0)(colours, grey)
    assert len(np.unique(grey)) > 40
    _native.AreaResizer(*shape, 32)(colours, frame)
    np.testing.assert_array_equal(frame, area_mean(grey, shape, 32))


def test_the_rows_of_the_hud_are_black_and_no_others() -> None:
    frame = resized(np.full(SCREEN_SHAPE, 200, dtype=np.uint8), (84, 84), masked_rows=32)
    # 32 of 240 rows are the top 11.2 of 84.
    assert not frame[:11].any()
    assert (frame[11] == round(0.8 * 200)).all()
    assert (frame[12:] == 200).all()


def test_the_clock_is_not_seen() -> None:
    """Two pictures that differ in the HUD only are one observation."""
    a = screen()
    b = a.copy()
    b[:32] = 255 - b[:32]
    np.testing.assert_array_equal(resized(a, (84, 84), 32), resized(b, (84, 84), 32))
    assert (resized(a, (84, 84)) != resized(b, (84, 84))).any()


def test_one_lane_is_written_into_the_buffer_of_all() -> None:
    frame_NHW = np.zeros((3, 84, 100), dtype=np.uint8)
    AreaResizer(84, 100, 0)(random_picture(), frame_NHW[1])
    assert frame_NHW[1].any()
    assert not frame_NHW[0].any()
    assert not frame_NHW[2].any()
