"""Synthetic episodes of policies that learn, wobble and collapse."""

from collections.abc import Iterator

import numpy as np
import pytest

from mario_dist.config import CollapseConfig
from mario_dist.system.collapse import Alarm, CollapseDetector
from mario_dist.types import Episode

CONFIG = CollapseConfig()


def episode(x: float, flag: bool) -> Episode:
    return Episode(
        lane=0,
        level="1-1",
        world=1,
        stage=1,
        episode_return=0.0,
        length=100,
        x_pos_max=int(x),
        score=0,
        coins=0,
        time_left=300,
        life=2,
        status="small",
        flag_get=flag,
        end="flag" if flag else "death",
        seconds=1.0,
    )


def play(rng: np.random.Generator, skill: float) -> Episode:
    """An episode of a policy that is worth ``skill``, 0 to 1: as noisy as those of real runs."""
    flag = bool(rng.random() < max(0.0, skill - 0.3))
    return episode(3161 if flag else np.clip(rng.gamma(2.0, 300 + 700 * skill), 200, 3100), flag)


def healthy(seed: int, count: int = 6000) -> Iterator[Episode]:
    """It learns in 2,000 episodes, and wobbles by up to a sixth of its skill all the while."""
    rng = np.random.default_rng(seed)
    wobble = 0.0
    for i in range(count):
        wobble = 0.995 * wobble + 0.1 * rng.normal() * 0.2
        skill = 0.8 * min(1.0, i / 2000)
        yield play(rng, skill * (1 + np.clip(wobble, -1 / 6, 1 / 6)))


def alarms(detector: CollapseDetector, episodes: Iterator[Episode]) -> list[tuple[int, Alarm]]:
    return [(i, alarm) for i, e in enumerate(episodes) for alarm in detector.episodes([e])]


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_noisy_run_raises_no_alarm(seed: int) -> None:
    assert alarms(CollapseDetector(CONFIG), healthy(seed)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_collapse_is_caught_within_the_window(seed: int) -> None:
    """Within ``window`` episodes the mean is the collapsed policy's, and ``episodes`` later it is told."""
    detector = CollapseDetector(CONFIG)
    assert alarms(detector, healthy(seed)) == []
    rng = np.random.default_rng(seed)
    found = alarms(detector, (episode(rng.gamma(2.0, 150), flag=False) for _ in range(1000)))
    assert {alarm.measure for _, alarm in found} == {"x_pos_mean", "clear_rate"}
    assert len(found) == 2, "each once"
    assert all(CONFIG.episodes <= i <= CONFIG.window + CONFIG.episodes for i, _ in found)
    text = next(alarm.text for _, alarm in found if alarm.measure == "clear_rate")
    assert text.startswith("clear rate 0% of the last 100 episodes has been under 50% of its best, ")


def test_it_alarms_again_after_a_recovery_only() -> None:
    detector = CollapseDetector(CollapseConfig(window=10, episodes=5))
    good, bad = [episode(1000, False)] * 30, [episode(100, False)] * 60
    assert [i for i, _ in alarms(detector, iter(good + bad + good + bad))] == [
        pytest.approx(40, abs=4),
        pytest.approx(130, abs=4),
    ]


def test_a_fall_that_passes_sooner_than_its_episodes_is_no_collapse() -> None:
    detector = CollapseDetector(CollapseConfig(window=10, episodes=30))
    good, bad = [episode(1000, False)] * 30, [episode(100, False)] * 20
    assert alarms(detector, iter(good + bad + good)) == []
    assert len(alarms(detector, iter(bad * 2))) == 1


def test_a_restart_forgets_what_the_collapsed_policy_played_and_keeps_the_best() -> None:
    detector = CollapseDetector(CollapseConfig(window=10, episodes=5))
    good, bad = [episode(1000, False)] * 20, [episode(100, False)] * 30
    assert len(alarms(detector, iter(good + bad))) == 1
    detector.restart()
    assert alarms(detector, iter(bad[:13])) == []
    assert len(alarms(detector, iter(bad[:1]))) == 1


def test_reports_that_leave_their_band_are_told_once() -> None:
    detector = CollapseDetector(CollapseConfig(reports=3, entropy_band=(0.1, 1.9), kl_max=0.2))
    fine, bad = {"entropy": 1.0, "approx_kl": 0.01}, {"entropy": 0.01, "approx_kl": 0.3}
    told = [detector.report(report) for report in [fine, bad, bad, fine, bad, bad, bad, bad, {}]]
    assert [len(each) for each in told] == [0, 0, 0, 0, 0, 0, 2, 0, 0]
    assert [alarm.text for alarm in told[6]] == [
        "entropy 0.01 has been under 0.1 for 3 reports",
        "approx_kl 0.3 has been over 0.2 for 3 reports",
    ]
    (high,) = [alarm for e in [1.0] + 3 * [2.5] for alarm in detector.report({"entropy": e})]
    assert high.text == "entropy 2.5 has been over 1.9 for 3 reports"


def test_what_is_not_a_number_has_left_its_band() -> None:
    detector = CollapseDetector(CollapseConfig(reports=2))
    assert [len(detector.report({"approx_kl": float("nan")})) for _ in range(2)] == [0, 1]
