"""Whichever side runs ahead waits, and the ratio comes out."""

import numpy as np
import pytest

from mario_dist.replay import RateLimiter


@pytest.mark.parametrize("eager", ["actors", "learner", "neither"])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0])
def test_the_ratio_is_kept_whoever_is_faster(eager: str, ratio: float) -> None:
    limiter, batch, unroll = RateLimiter(ratio, min_size=500, tolerance=200.0), 32, 50
    rng = np.random.default_rng(0)
    odds = {"actors": 0.95, "learner": 0.05, "neither": 0.5}[eager]
    waited = {"actors": 0, "learner": 0}
    while limiter.inserted < 50_000:
        assert -batch <= limiter.balance <= 200.0 + unroll * ratio
        if rng.random() < odds:
            if limiter.may_insert():
                limiter.inserted += unroll
            else:
                waited["actors"] += 1
        elif due := limiter.batches_due(batch, most=3):
            assert due <= 3
            limiter.sampled += due * batch
        elif not limiter.filling:
            waited["learner"] += 1
    assert limiter.replay_ratio == pytest.approx(ratio, rel=0.02, abs=0.01)
    if eager != "neither":
        assert waited[eager] > 100


def test_nothing_is_learned_before_the_replay_is_filled() -> None:
    limiter = RateLimiter(4.0, min_size=100, tolerance=0.0)
    limiter.inserted = 99
    assert limiter.filling
    assert limiter.may_insert()
    assert limiter.batches_due(32, most=8) == 0
    assert limiter.replay_ratio == 0.0
    limiter.inserted = 100
    assert limiter.batches_due(32, most=8) == 1
    limiter.inserted = 200  # 400 samples are due
    assert not limiter.may_insert()
    assert limiter.batches_due(32, most=8) == 8
    limiter.sampled = 401
    assert limiter.may_insert()
    assert limiter.batches_due(32, most=8) == 0


def test_a_lost_replay_is_filled_again() -> None:
    limiter = RateLimiter(4.0, min_size=100, tolerance=0.0, inserted=1_000, sampled=200)
    assert not limiter.may_insert()
    limiter.restart(40)
    assert limiter.filling
    assert limiter.inserted == 40
    assert limiter.may_insert()


@pytest.mark.parametrize("bad", [(0.0, 1, 0.0), (1.0, 0, 0.0), (1.0, 1, -1.0)])
def test_bad_settings_are_refused(bad: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RateLimiter(*bad)
