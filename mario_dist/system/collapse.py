"""Notice when a policy that could do something no longer can."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mario_dist.config import CollapseConfig
from mario_dist.evaluation.statistics import Z95, wilson
from mario_dist.types import Episode


@dataclass(frozen=True, slots=True)
class Alarm:
    """What left its band: a measure's name and value, and a sentence for people."""

    measure: str
    value: float
    text: str


@dataclass
class _Watch:
    """One measure that is bad or not, again and again; it alarms once, after ``patience`` in a row."""

    patience: int
    bad: int = 0
    raised: bool = False

    def look(self, bad: bool) -> bool:
        """Whether to raise the alarm now."""
        self.bad = self.bad + 1 if bad else 0
        if not bad:
            self.raised = False
        if self.raised or self.bad < self.patience:
            return False
        self.raised = True
        return True


@dataclass
class CollapseDetector:
    """Watches training's episodes and the learner's reports. Alarms again only after a recovery.

    A moving mean counts as fallen where the upper end of its own 95 % interval is under the share of its
    best: a noisy measure is not taken for a bad one.
    """

    config: CollapseConfig
    best: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._recent: deque[Episode] = deque(maxlen=self.config.window)
        self._fallen = {name: _Watch(self.config.episodes) for name in ("x_pos_mean", "clear_rate")}
        self._unhealthy = {name: _Watch(self.config.reports) for name in ("entropy", "approx_kl")}

    def episodes(self, episodes: Sequence[Episode]) -> list[Alarm]:
        """Take in finished episodes, in their order."""
        return [alarm for episode in episodes for alarm in self._episode(episode)]

    def report(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take in a learner's report."""
        low, high = self.config.entropy_band
        bands = {"entropy": (low, high), "approx_kl": (-math.inf, self.config.kl_max)}
        alarms = []
        for name, (low, high) in bands.items():
            if name not in metrics:
                continue
            value = metrics[name]
            if self._unhealthy[name].look(not low <= value <= high):
                beyond = f"under {low:g}" if value < low else f"over {high:g}"
                text = f"{name} {value:.3g} has been {beyond} for {self.config.reports} reports"
                alarms.append(Alarm(name, value, text))
        return alarms

    def restart(self) -> None:
        """Forget the newest episodes: another policy plays from here on. What was best stays."""
        self.__post_init__()

    def _episode(self, episode: Episode) -> list[Alarm]:
        self._recent.append(episode)
        if len(self._recent) < self.config.window:
            return []
        n = len(self._recent)
        x = np.array([e.x_pos_max for e in self._recent], dtype=np.float64)
        cleared = sum(e.flag_get for e in self._recent)
        upper_x = float(x.mean() + Z95 * x.std(ddof=1) / math.sqrt(n)) if n > 1 else float(x[0])
        alarms = []
        for name, mean, upper in (
            ("x_pos_mean", float(x.mean()), upper_x),
            ("clear_rate", cleared / n, wilson(cleared, n)[1]),
        ):
            best = self.best[name] = max(mean, self.best.get(name, mean))
            if self._fallen[name].look(upper < self.config.share * best):
                alarms.append(Alarm(name, mean, self._sentence(name, mean, best)))
        return alarms

    def _sentence(self, name: str, mean: float, best: float) -> str:
        shown = "{:.0%}" if name == "clear_rate" else "{:.0f}"
        what = "clear rate" if name == "clear_rate" else "mean x"
        return (
            f"{what} {shown.format(mean)} of the last {self.config.window} episodes has been under"
            f" {self.config.share:.0%} of its best, {shown.format(best)}, for {self.config.episodes} episodes"
        )
