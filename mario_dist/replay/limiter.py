"""How often each transition is learned from: whichever side runs ahead waits."""

from dataclasses import dataclass


@dataclass
class RateLimiter:
    """Keeps samples per insert at a ratio (as Reverb's SampleToInsertRatio; Cassirer et al. 2021).

    Learning begins once ``min_size`` transitions are there. From then on ``balance``, the samples that are
    due and not yet taken, is kept in [-1 batch, tolerance]: the learner waits below it, the actors above.

    samples_per_insert: the replay ratio. tolerance: in samples.
    inserted, sampled: since the limiter was made or restarted; the ratio is kept over this time.
    """

    samples_per_insert: float
    min_size: int
    tolerance: float
    inserted: int = 0
    sampled: int = 0

    def __post_init__(self) -> None:
        if self.samples_per_insert <= 0.0 or self.min_size < 1 or self.tolerance < 0.0:
            raise ValueError("samples_per_insert and min_size must be positive, tolerance not negative")

    @property
    def filling(self) -> bool:
        """Whether learning has not begun."""
        return self.inserted < self.min_size

    @property
    def balance(self) -> float:
        return max(0, self.inserted - self.min_size) * self.samples_per_insert - self.sampled

    def may_insert(self) -> bool:
        return self.filling or self.balance <= self.tolerance

    def batches_due(self, batch: int, most: int) -> int:
        """How many batches may be sampled now, at most ``most``."""
        if self.filling or self.balance < 0.0:
            return 0
        return min(most, 1 + int(self.balance // batch))

    def restart(self, size: int) -> None:
        """Only ``size`` transitions are left: the replay is filled again before learning goes on."""
        self.inserted, self.sampled = size, 0

    @property
    def replay_ratio(self) -> float:
        """Samples per insert so far, those that filled the replay not counted."""
        learned_from = self.inserted - self.min_size
        return self.sampled / learned_from if learned_from > 0 else 0.0
