"""Metrics by what they are of."""

import pytest

from mario_dist.report.metric_groups import group_metrics, metric_title


def test_every_metric_is_in_one_group_and_strangers_are_last() -> None:
    names = ["loss", "q_loss", "entropy", "agent_steps_per_s", "learn_s", "q_mean", "gremlins", "lr"]
    groups = group_metrics(names)
    assert sorted(name for members in groups.values() for name in members) == sorted(names)
    assert groups["Losses"] == ["loss", "q_loss"]
    assert groups["Throughput"] == ["agent_steps_per_s"]
    assert groups["Seconds"] == ["learn_s"]
    assert list(groups)[-1] == "Others"
    assert groups["Others"] == ["gremlins"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("learn_cpu_s", "learn cpu (s)"),
        ("agent_steps_per_s", "agent steps per s"),
        ("x_pos_mean", "x pos mean"),
    ],
)
def test_titles(name: str, title: str) -> None:
    assert metric_title(name) == title
