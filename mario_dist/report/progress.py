"""What a running training says of itself, several times a second."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run. Means are over the last 100 episodes, None before the first has ended.

    agent_steps, episodes: of the whole run; start_steps: agent_steps when this process began.
    wall_s: seconds since this process began to train. The rates are recent ones, per second.
    policy_lag: learner versions between the newest weights and those that made the last batch.
    queue_depth: unrolls that wait for the learner. version: the newest weights.
    metrics: the learner's last scalars by name.
    evaluation: (clear rate, mean x-position) of the best evaluation so far.
    alarm: what the last alarm said.
    """

    agent_steps: int
    total_steps: int
    start_steps: int
    wall_s: float
    agent_steps_per_s: float
    env_frames_per_s: float
    episodes: int
    x_pos_mean: float | None
    x_pos_best: float | None
    clear_rate: float | None
    return_mean: float | None
    policy_lag: int
    queue_depth: int
    version: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: tuple[float, float] | None = None
    alarm: str | None = None

    @property
    def done(self) -> float:
        """The share of the run that is done, 0 to 1."""
        return min(1.0, self.agent_steps / self.total_steps)

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this process's average speed, which pauses for evaluations are part of."""
        left = max(0, self.total_steps - self.agent_steps)
        if left == 0:
            return 0.0
        made = self.agent_steps - self.start_steps
        return left * self.wall_s / made if made > 0 and self.wall_s > 0 else None


def duration(seconds: float | None) -> str:
    """``h:mm:ss``, with days in front where there are any; ``?`` for None or what is not finite."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"


def number(value: float) -> str:
    """A scalar in about six characters: 3 significant digits, large ones whole."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sparkline(values: list[float], width: int, levels: str) -> str:
    """``values`` as at most ``width`` characters of ``levels``, lowest to highest; empty without values.

    Neighbours are averaged into one character where there are more values than characters.
    """
    cells = min(width, len(values))
    if cells < 1:
        return ""
    edges = [len(values) * i // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    top = len(levels) - 1
    return "".join(levels[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


class History:
    """A curve of bounded length: where it is full, every second point is dropped and the spacing doubles.

    It covers the whole run with evenly spaced points, however long the run is.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._skip = 1
        self._seen = 0
        self.values: list[float] = []

    def add(self, value: float) -> None:
        if self._seen % self._skip == 0:
            self.values.append(value)
            if len(self.values) > self._size:
                self.values = self.values[::2]
                self._skip *= 2
        self._seen += 1
