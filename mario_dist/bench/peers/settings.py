"""What a peer is asked to run, and what it answers: plain data that crosses a process boundary as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import ClassVar, Literal, Self

from mario_dist.env.config import LEVELS, EnvConfig
from mario_dist.nets.config import NetworkConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every workload says, the same for every contender.

    n_envs: emulators. n_steps: agent steps of each of them between two turns of the learner.
    torso: the network, shared by policy and value: ``nature`` (Mnih et al. 2015, 512 features), or for us
    alone ``small`` (256 features), what our default configuration has.
    iterations: those that are measured, after a warm-up.
    torch_threads: PyTorch's CPU threads in the learner; 0 for what is fastest for the peer.
    device: where the learner computes; ``auto`` takes CUDA where there is one.
    emulator: of our environment; the peers' own has nes-py.
    """

    algo: ClassVar[str]
    """As the peers call it."""

    level: str = "1-1"
    n_envs: int = 8
    n_steps: int
    gamma: float = 0.9
    lr: float
    iterations: int = 3
    seed: int = 0
    torso: Literal["nature", "small"] = "nature"
    torch_threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    emulator: Literal["auto", "native", "nes-py"] = "auto"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {self.level!r}; levels are 1-1 to 8-4")
        if min(self.n_envs, self.n_steps, self.iterations) < 1:
            raise ValueError("n_envs, n_steps and iterations must be at least 1")
        if min(self.torch_threads, self.seed) < 0:
            raise ValueError("torch_threads and seed must not be negative")

    @property
    def turn(self) -> int:
        """Agent steps of all emulators between two turns of the learner."""
        return self.n_envs * self.n_steps

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``TypeError`` for unknown keys and ``ValueError`` for values out of range."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings(Settings):
    """One PPO workload.

    minibatch: samples per gradient step. epochs: passes over one iteration's samples.
    warmup_iterations: iterations before the measured ones.
    """

    algo: ClassVar[str] = "PPO"

    n_steps: int = 128
    minibatch: int = 256
    epochs: int = 4
    gae_lambda: float = 1.0
    clip: float = 0.2
    lr: float = 2.5e-4
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    warmup_iterations: int = 1

    def __post_init__(self) -> None:
        Settings.__post_init__(self)  # in a dataclass with slots, super() without arguments fails
        if self.epochs < 1 or self.warmup_iterations < 0:
            raise ValueError("epochs must be at least 1 and warmup_iterations not negative")
        if not 2 <= self.minibatch <= self.turn:
            raise ValueError(f"minibatch must be in 2..{self.turn} (n_envs * n_steps)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DQNSettings(Settings):
    """One Q-learning workload.

    replay_ratio: samples learned from per agent step; a turn is n_envs * n_steps * replay_ratio / batch
    updates, a whole number. n_step: steps of a return. capacity: transitions in the replay.
    warmup: agent steps before the measured ones, the first of which fill the replay.
    """

    algo: ClassVar[str] = "DQN"

    n_steps: int = 64
    replay_ratio: float = 1.0
    batch: int = 256
    n_step: int = 3
    lr: float = 1e-4
    target_every: int = 250
    capacity: int = 8_192
    warmup: int = 2_048

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.batch < 1:
            raise ValueError("batch must be at least 1")
        if self.updates < 1 or self.updates * self.batch != self.turn * self.replay_ratio:
            raise ValueError(
                f"replay_ratio={self.replay_ratio} makes {self.turn * self.replay_ratio / self.batch:.2f}"
                f" updates of {self.batch} from {self.turn} steps; it must be a whole number"
            )

    @property
    def updates(self) -> int:
        """Updates in one turn of the learner."""
        return int(self.turn * self.replay_ratio / self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpalaSettings(Settings):
    """One IMPALA workload: ``n_steps`` of all emulators are a batch, and a batch is one gradient step.

    warmup_s: seconds of training before the measured ones. seconds: the least of each measured window, of
    which there are ``iterations``; one ends with a gradient step.
    """

    algo: ClassVar[str] = "IMPALA"

    n_envs: int = 16
    n_steps: int = 32
    lr: float = 5e-4
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 40.0
    warmup_s: float = 8.0
    seconds: float = 5.0
    iterations: int = 5

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.seconds <= 0.0 or self.warmup_s < 0.0:
            raise ValueError("seconds must be positive and warmup_s not negative")


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer reached.

    agent_steps_per_s: the median of per_iteration, each one rollout plus its PPO update.
    env_steps: agent steps in the measured iterations.
    seconds: the median seconds of one iteration's parts, ``rollout`` and ``learn``.
    detail: versions, threads, arrangement: what somebody needs to judge the figure.
    updates_per_learn_s: updates in a second that is spent on learning, for Q-learning.
    """

    agent_steps_per_s: float
    per_iteration: tuple[float, ...]
    env_steps: int
    seconds: Mapping[str, float]
    detail: Mapping[str, object]
    updates_per_learn_s: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``ValueError`` or ``TypeError`` where the text is not a result."""
        tree = json.loads(text)
        return cls(**{**tree, "per_iteration": tuple(tree["per_iteration"])})


def env_config(settings: Settings) -> EnvConfig:
    """The peers' environment as ours: episodes end with the life or the level alone."""
    return EnvConfig(
        levels=(settings.level,),
        reward="native",
        noop_max=0,
        stall_steps=0,
        max_steps=0,
        emulator=settings.emulator,
    )


def network_config(settings: Settings) -> NetworkConfig:
    return NetworkConfig(torso=settings.torso, hidden=512 if settings.torso == "nature" else 256)


@dataclass(frozen=True, slots=True)
class Iteration:
    """One measured iteration: agent steps made and trained on, and where the seconds went."""

    agent_steps: int
    rollout_s: float
    learn_s: float

    @property
    def agent_steps_per_s(self) -> float:
        return self.agent_steps / (self.rollout_s + self.learn_s)


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of a gradient step, and the agent steps and seconds of learning by then."""

    at_s: float
    agent_steps: int
    learn_s: float


def windows(marks: Sequence[Mark], settings: ImpalaSettings) -> list[tuple[Mark, Mark]]:
    """The first and last marks of the windows that ``settings`` wants measured, or of as many as there are.

    The warm-up begins with the first mark, the first window with the first one after it, and each window
    where the one before it ended.
    """
    found: list[tuple[Mark, Mark]] = []
    start: Mark | None = None
    for mark in marks:
        if start is None:
            start = mark if mark.at_s - marks[0].at_s >= settings.warmup_s else None
        elif mark.at_s - start.at_s >= settings.seconds:
            found.append((start, mark))
            start = mark
    return found[: settings.iterations]


def measured(pairs: Sequence[tuple[Mark, Mark]]) -> list[Iteration]:
    """Windows as iterations; what is not learning counts as rollout."""
    return [
        Iteration(
            last.agent_steps - first.agent_steps,
            rollout_s=last.at_s - first.at_s - (last.learn_s - first.learn_s),
            learn_s=last.learn_s - first.learn_s,
        )
        for first, last in pairs
    ]


def summarise(iterations: Sequence[Iteration], detail: Mapping[str, object], updates: int = 0) -> PeerResult:
    """The medians over the measured iterations (at least one), each with so many updates, if they count."""
    per_iteration = tuple(i.agent_steps_per_s for i in iterations)
    return PeerResult(
        agent_steps_per_s=median(per_iteration),
        per_iteration=per_iteration,
        env_steps=sum(i.agent_steps for i in iterations),
        seconds={
            "rollout": median(i.rollout_s for i in iterations),
            "learn": median(i.learn_s for i in iterations),
        },
        detail=detail,
        updates_per_learn_s=updates / median(i.learn_s for i in iterations) if updates else None,
    )
