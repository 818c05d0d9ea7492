"""What a peer is asked to run, and what it answers: plain data that crosses a process boundary as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal, Self

from mario_dist.env.config import LEVELS, EnvConfig
from mario_dist.nets.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """One PPO workload, the same for every contender.

    n_envs: emulators. n_steps: agent steps of each of them in one iteration.
    minibatch: samples per gradient step. epochs: passes over one iteration's samples.
    torso: the network, shared by policy and value: ``nature`` (Mnih et al. 2015, 512 features), or for us
    alone ``small`` (256 features), what our default configuration has.
    warmup_iterations: iterations before the measured ones. iterations: the measured ones.
    torch_threads: PyTorch's CPU threads in the learner; 0 for what is fastest for the peer.
    device: where the learner computes; ``auto`` takes CUDA where there is one.
    emulator: of our environment; the peers' own has nes-py.
    """

    level: str = "1-1"
    n_envs: int = 8
    n_steps: int = 128
    minibatch: int = 256
    epochs: int = 4
    gamma: float = 0.9
    gae_lambda: float = 1.0
    clip: float = 0.2
    lr: float = 2.5e-4
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    torso: Literal["nature", "small"] = "nature"
    warmup_iterations: int = 1
    iterations: int = 3
    seed: int = 0
    torch_threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    emulator: Literal["auto", "native", "nes-py"] = "auto"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {self.level!r}; levels are 1-1 to 8-4")
        if min(self.n_envs, self.n_steps, self.epochs, self.iterations) < 1:
            raise ValueError("n_envs, n_steps, epochs and iterations must be at least 1")
        if not 2 <= self.minibatch <= self.batch:
            raise ValueError(f"minibatch must be in 2..{self.batch} (n_envs * n_steps)")
        if min(self.warmup_iterations, self.torch_threads, self.seed) < 0:
            raise ValueError("warmup_iterations, torch_threads and seed must not be negative")

    @property
    def batch(self) -> int:
        """Agent steps of one iteration."""
        return self.n_envs * self.n_steps

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``TypeError`` for unknown keys and ``ValueError`` for values out of range."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class DQNSettings:
    """One Q-learning workload, the same for every contender; torso and the rest as in ``PeerSettings``.

    n_envs: emulators. n_steps: agent steps of each of them between two turns of the learner.
    replay_ratio: samples learned from per agent step; a turn is n_envs * n_steps * replay_ratio / batch
    updates, a whole number. n_step: steps of a return. capacity: transitions in the replay.
    warmup: agent steps before the measured ones, the first of which fill the replay. iterations: turns that
    are measured. torch_threads: PyTorch's CPU threads while learning; 0 for the machine's.
    """

    level: str = "1-1"
    n_envs: int = 8
    n_steps: int = 64
    replay_ratio: float = 1.0
    batch: int = 256
    n_step: int = 3
    gamma: float = 0.9
    lr: float = 1e-4
    target_every: int = 250
    capacity: int = 8_192
    warmup: int = 2_048
    iterations: int = 8
    seed: int = 0
    torso: Literal["nature", "small"] = "nature"
    torch_threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    emulator: Literal["auto", "native", "nes-py"] = "auto"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {self.level!r}; levels are 1-1 to 8-4")
        if min(self.n_envs, self.n_steps, self.batch, self.iterations) < 1:
            raise ValueError("n_envs, n_steps, batch and iterations must be at least 1")
        if self.updates < 1 or self.updates * self.batch != self.turn * self.replay_ratio:
            raise ValueError(
                f"replay_ratio={self.replay_ratio} makes {self.turn * self.replay_ratio / self.batch:.2f}"
                f" updates of {self.batch} from {self.turn} steps; it must be a whole number"
            )

    @property
    def turn(self) -> int:
        """Agent steps between two turns of the learner."""
        return self.n_envs * self.n_steps

    @property
    def updates(self) -> int:
        """Updates in one turn of the learner."""
        return int(self.turn * self.replay_ratio / self.batch)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ``TypeError`` for unknown keys and ``ValueError`` for values out of range."""
        return cls(**json.loads(text))


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


Settings = PeerSettings | DQNSettings


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
