"""Which metrics belong together."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Losses", ("loss", "*_loss", "td_error")),
    ("Policy", ("entropy", "approx_kl", "clip_fraction", "rho_*")),
    ("Values", ("explained_variance", "value_*", "return_target_*", "q_*")),
    ("Optimiser", ("grad_norm", "lr")),
    ("Policy lag and queues", ("policy_lag*", "queue_depth", "*_unrolls", "dropped_steps", "actor_restarts")),
    ("Throughput", ("*_per_s", "cores_busy")),
    ("Replay", ("replay_*", "priority_*", "importance_*", "sample_age")),
    ("Seconds", ("collect_s", "learn_s", "*_s")),
    ("Episodes", ("episodes", "return_*", "x_pos_*", "clear_rate")),
)
"""The first group with a pattern that fits takes a metric; within a group, in the order of its patterns."""
_OTHERS = "Others"


def group_metrics(names: Iterable[str]) -> dict[str, list[str]]:
    """Every name once, by group; what fits no group is among the others, at the end."""
    left = sorted(names)
    groups: dict[str, list[str]] = {}
    for title, patterns in _GROUPS:
        found = list(dict.fromkeys(n for pattern in patterns for n in left if fnmatchcase(n, pattern)))
        if found:
            groups[title] = found
        left = [name for name in left if name not in found]
    return groups | ({_OTHERS: left} if left else {})


def metric_title(name: str) -> str:
    """``learn_cpu_s`` as "learn cpu (s)", ``agent_steps_per_s`` as "agent steps per s"."""
    stem = name.removesuffix("_s")
    timed = stem != name and not stem.endswith("_per")
    return f"{stem if timed else name}".replace("_", " ") + (" (s)" if timed else "")
