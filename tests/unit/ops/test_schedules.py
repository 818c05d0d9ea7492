import pytest

from mario_dist.ops.schedules import linear


@pytest.mark.parametrize(
    ("progress", "expected"), [(-1.0, 2.0), (0.0, 2.0), (0.25, 1.75), (0.5, 1.5), (1.0, 1.0), (3.0, 1.0)]
)
def test_linear(progress: float, expected: float) -> None:
    assert linear((2.0, 1.0), progress) == expected


def test_linear_rises_and_stays() -> None:
    assert linear((0.0, 10.0), 0.3) == pytest.approx(3.0)
    assert [linear((0.3, 0.3), p / 10) for p in range(11)] == [0.3] * 11
