"""What a policy must show before it is promoted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mario_dist.evaluation.comparison import newcombe
from mario_dist.evaluation.protocol import SETTINGS, EvalProtocol


@dataclass(frozen=True, slots=True)
class Gate:
    """protocol: a named one (``eval --protocol``). episodes: of each level.

    min_clear_rate: of those episodes, over all levels. not_worse: whether a policy that is worse than the
    champion beyond the 95 % interval of their difference is refused.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # for config.load_settings

    protocol: Literal["jitter-30", "jitter-30-greedy", "fixed-start", "fixed-start-greedy", "sticky-25"] = (
        "jitter-30"
    )
    episodes: int = 100
    seed: int = 4_000_037
    min_clear_rate: float = 0.5
    not_worse: bool = True

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.seed < 0:
            raise ValueError("episodes must be at least 1 and seed not negative")
        if not 0.0 <= self.min_clear_rate <= 1.0:
            raise ValueError("min_clear_rate must be from 0 to 1")

    def asks(self, levels: tuple[str, ...]) -> EvalProtocol:
        """The protocol on these levels."""
        return EvalProtocol(levels, episodes=self.episodes, seed=self.seed, **SETTINGS[self.protocol])


def objections(gate: Gate, report: Mapping[str, Any], champion: Mapping[str, Any] | None) -> list[str]:
    """Why a policy does not pass, in a clause each; none where it passes.

    Reports are ``EvalReport`` as mappings. Where they are of different protocols, as a policy's and a
    Q-network's, which plays greedily, their rates are compared all the same: each is judged as it plays.
    """
    found = []
    rate = report["clear_rate"]
    if rate < gate.min_clear_rate:
        found.append(
            f"it clears {rate:.0%} of {report['episodes']} episodes, and the gate asks for"
            f" {gate.min_clear_rate:.0%}"
        )
    if gate.not_worse and champion is not None:
        low, high = newcombe(*_cleared(report), *_cleared(champion))
        if high < 0.0:
            found.append(
                f"it is worse than the champion: {rate:.0%} against {champion['clear_rate']:.0%}, and the"
                f" difference is {low:.0%} to {high:.0%}"
            )
    return found


def _cleared(report: Mapping[str, Any]) -> tuple[int, int]:
    return round(report["clear_rate"] * report["episodes"]), report["episodes"]
