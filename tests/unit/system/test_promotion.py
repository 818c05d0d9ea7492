"""Who had an alias before, by its audit."""

import pytest

from mario_dist.store import PromotionEvent, PromotionRow, PromotionVerdict
from mario_dist.system.promotion import predecessors

Move = tuple[PromotionEvent, int | None, PromotionVerdict]


def rows(*moves: Move) -> list[PromotionRow]:
    made: list[PromotionRow] = []
    for event, to, verdict in moves:
        before = made[-1].to_version if made else None
        made.append(
            PromotionRow(
                model="m",
                alias="champion",
                number=len(made) + 1,
                event=event,
                from_version=before,
                to_version=to,
                moved=True,
                verdict=verdict,
                registry="here",
            )
        )
    return made


@pytest.mark.parametrize(
    ("moves", "found"),
    [
        ((), []),
        ((("promote", 1, "passed"),), []),
        ((("promote", 1, "passed"), ("promote", 2, "passed"), ("promote", 3, "forced")), [2, 1]),
        # What was rolled back is out of the line.
        ((("promote", 1, "passed"), ("promote", 2, "passed"), ("rollback", 1, "verified")), []),
        (
            (
                ("promote", 1, "passed"),
                ("promote", 2, "passed"),
                ("promote", 3, "passed"),
                ("rollback", 2, "verified"),
                ("promote", 4, "passed"),
            ),
            [2, 1],
        ),
        # Nor is what failed, or what nobody looked at, a place to go back to.
        ((("promote", 1, "passed"), ("changed", 2, "failed"), ("promote", 3, "passed")), [1]),
        ((("promote", 1, "passed"), ("changed", 2, "unverified"), ("promote", 3, "passed")), [1]),
        ((("promote", 1, "passed"), ("changed", 2, "failed")), [1]),
        ((("promote", 1, "passed"), ("changed", 2, "failed"), ("put back", 1, "verified")), []),
        # A version that comes again is there once, and an alias that nobody has goes to the last one.
        ((("promote", 1, "passed"), ("promote", 2, "passed"), ("promote", 1, "passed")), [2, 1]),
        ((("promote", 1, "passed"), ("changed", None, "passed")), [1]),
    ],
)
def test_predecessors(moves: tuple[Move, ...], found: list[int]) -> None:
    audit = rows(*moves)
    assert predecessors(audit, audit[-1].to_version if audit else None) == found
