"""Pictures of pictures: what is where, and that the playing field stays as it was."""

import numpy as np
import pytest

from mario_dist.report.overlay import GAP, Caption, captioned, enlarged, finished, footer, grid, strip
from mario_dist.types import U8

CAPTION = Caption(("right", "A"), x_pos=1234, value=5.678)


def field(seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (240, 256, 3), dtype=np.uint8)


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_each_pixel_becomes_a_square(zoom: int) -> None:
    picture = field()
    expected = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    result = enlarged(picture, zoom)
    assert np.array_equal(result, expected)
    result[:] = 0
    assert np.array_equal(picture, field()), "the picture given stays its owner's"


@pytest.mark.parametrize("zoom", [1, 2])
def test_an_overlay_is_a_strip_that_leaves_the_playing_field_alone(zoom: int) -> None:
    picture = field()
    result = captioned(picture, CAPTION, zoom)
    assert result.dtype == np.uint8
    assert result.shape == (262 * zoom, 256 * zoom, 3)
    assert np.array_equal(result[: 240 * zoom], enlarged(picture, zoom))
    assert np.array_equal(result[240 * zoom :], strip(CAPTION, 256, zoom))


def columns_that_differ(a: Caption, b: Caption) -> set[int]:
    """In units of a picture's own pixels."""
    return {int(x) for x in np.flatnonzero((strip(a, 256, 1) != strip(b, 256, 1)).any(axis=(0, 2)))}


def test_a_strip_shows_each_of_the_things_it_says_in_its_own_place() -> None:
    pads = {
        name: columns_that_differ(CAPTION, Caption(buttons, 1234, 5.678))
        for name, buttons in {
            "A": ("right",),
            "B": ("right", "A", "B"),
            "right": ("A",),
            "left": ("left", "right", "A"),
        }.items()
    }
    assert max(pads["left"]) < min(pads["right"]) <= max(pads["right"]) < min(pads["B"])
    assert max(pads["B"]) < min(pads["A"]) <= max(pads["A"]) < 60
    x = columns_that_differ(CAPTION, Caption(CAPTION.buttons, 9, 5.678))
    value = columns_that_differ(CAPTION, Caption(CAPTION.buttons, 1234, -12.3))
    name = columns_that_differ(CAPTION, Caption(CAPTION.buttons, 1234, 5.678, "max Q"))
    assert 60 < min(x) <= max(x) < min(name)
    assert max(x) < min(value)


def test_the_longest_texts_fit() -> None:
    widest = strip(Caption((), x_pos=99999, value=-1234.56, value_name="max Q"), 256, 1)
    drawn = np.flatnonzero((widest != widest[0, 0]).any(axis=(0, 2)))
    assert drawn.max() < 255
    for text in ("a run", "a-run-with-a-very-long-name " * 5):
        line = footer(text, 256)
        assert line.shape == (24, 256, 3)
        assert (line[:, -4:] == line[0, 0]).all(), "nothing runs over the edge"
        assert (line != line[0, 0]).any()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2), (3, 2)])
def test_a_grids_cells_are_the_lanes_own_pictures_row_by_row(rows: int, columns: int) -> None:
    cells = [field(i)[:20, :30] for i in range(rows * columns)]
    picture = grid(cells, columns)
    assert picture.shape == (rows * (20 + GAP) - GAP, columns * (30 + GAP) - GAP, 3)
    for i, cell in enumerate(cells):
        y, x = i // columns * (20 + GAP), i % columns * (30 + GAP)
        assert np.array_equal(picture[y : y + 20, x : x + 30], cell)


def test_pictures_that_fill_no_rows_are_refused() -> None:
    for cells in ([], [field()] * 3):
        with pytest.raises(ValueError, match="fill no rows of 2"):
            grid(cells, 2)


def test_a_finished_lane_is_darker_and_says_so_in_its_middle() -> None:
    picture = np.full((262, 256, 3), 200, dtype=np.uint8)
    result = finished(picture, ("flag", "at x 3161"), zoom=1)
    assert result.shape == picture.shape
    written = np.argwhere((result != result[0, 0]).any(axis=2))
    assert (result[0, 0] < 100).all()
    assert written.min(axis=0) == pytest.approx((110, 80), abs=25)
    assert (written.min(axis=0) + written.max(axis=0)) / 2 == pytest.approx((131, 128), abs=10)
    assert (picture == 200).all()
