"""The ladder of Horgan et al. 2018, section 4."""

import pytest

from mario_dist.ops.exploration import epsilon_ladder


def test_the_papers_ladder() -> None:
    epsilons = [epsilon_ladder(0.4, 7.0, i, 8) for i in range(8)]
    assert epsilons == pytest.approx([0.4 ** (1 + 7 * i / 7) for i in range(8)])
    assert epsilons[0] == pytest.approx(0.4)
    assert epsilons[-1] == pytest.approx(0.4**8)
    assert epsilons == sorted(epsilons, reverse=True)


def test_one_actor_alone_has_the_base() -> None:
    assert epsilon_ladder(0.4, 7.0, 0, 1) == pytest.approx(0.4)
