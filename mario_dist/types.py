"""The frozen dataclasses that cross rooms, and the legend of shapes.

Shape suffixes: T time (agent steps of one unroll), N lanes, B batch, A actions, K stacked frames,
H height and W width of a frame, F final frames, V frames of a sampled transition's window.
``stack_BKHW`` is a uint8 array of shape [B, K, H, W].

This module imports NumPy and the standard library only, so that every room can import it anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Arrays = dict[str, NDArray[np.generic]]
"""A flat, named set of arrays: the portable form of any state that a checkpoint keeps."""


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Those whose names begin with ``prefix``, named without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


EpisodeEnd = Literal["flag", "death", "time", "stall", "astray", "truncated"]
"""How an episode ended; ``astray`` is a maze's wrong path or a warp zone. Only ``truncated`` (the step limit)
bootstraps; the others are terminal."""


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What a policy must know of an environment."""

    frame_shape: tuple[int, int]
    frame_stack: int
    action_names: tuple[str, ...]
    frame_skip: int

    @property
    def n_actions(self) -> int:
        return len(self.action_names)


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished episode of one lane, as the environment knows it.

    ``x_pos_max`` is in pixels, rebased over sub-areas; ``length`` counts agent steps; ``seconds`` is
    wall-clock time; ``time_left`` is the in-game timer; ``status`` is small, tall or fireball; ``frames`` are
    the emulator's, for reports: the run store does not keep them.
    """

    lane: int
    level: str
    world: int
    stage: int
    episode_return: float
    length: int
    x_pos_max: int
    score: int
    coins: int
    time_left: int
    life: int
    status: str
    flag_get: bool
    end: EpisodeEnd
    seconds: float
    frames: int = 0


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """An episode and who played it: one row of the run store.

    ``(actor, incarnation, sequence)`` is unique within a run.
    """

    actor: int
    incarnation: int
    sequence: int
    weights_version: int
    episode: Episode


@dataclass(frozen=True, slots=True)
class EnvStep:
    """What one step of a ``VectorEnv`` returns for its N lanes.

    Autoreset happens in the same step: where ``terminated_N | truncated_N``, ``frame_NHW`` is already
    the FIRST frame of the next episode, and the true last frame of the one that ended is in
    ``final_frame_FHW``, one row per ended lane in the order of ``final_lane_F``. The arrays are the
    environment's own buffers: copy what is kept beyond the next step.
    """

    frame_NHW: U8
    reward_N: F32
    terminated_N: Bool
    truncated_N: Bool
    final_frame_FHW: U8
    final_lane_F: I64
    ended: tuple[Episode, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """A network's parameters at one version; the latest wins."""

    version: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Unroll:
    """T steps of N lanes, time-major, each frame stored once.

    The index contract: the observation of step t is the stack ``frames[t : t + K]``, its newest frame
    ``frames[t + K - 1]``; action, reward, terminated and truncated of step t belong to the transition
    t -> t + 1. Rows 0..K-2 are the frames that the first stack showed before its newest one, and the
    last row, T + K - 1, is the newest frame of the bootstrap observation. After an end at step t the
    next episode's first stack is its first frame K times: ``learner.batch.stack_index`` applies that.

    frames: uint8 [T + K, N, H, W]
    action: int64 [T, N]; reward: float32 [T, N]; terminated, truncated: bool [T, N]
    log_prob: float32 [T, N], behaviour log-probability of ``action``
    value: float32 [T, N], the behaviour network's value of the observation of step t
    final_frame: uint8 [F, H, W], the true last frames of the steps that were TRUNCATED, found at
    (final_t[f], final_n[f]); terminated steps need none.
    priority: float32 [T, N], absolute n-step temporal-difference errors by the acting network, or None
    where nobody asks for them. Row t is of the step n BEFORE step t, whose return is complete only now; the
    first n rows belong to this actor's unroll before, and mean nothing in its first one.
    """

    frames: U8
    action: I64
    reward: F32
    terminated: Bool
    truncated: Bool
    log_prob: F32
    value: F32
    final_frame: U8
    final_t: I64
    final_n: I64
    weights_version: int
    actor: int
    incarnation: int
    sequence: int
    priority: F32 | None = None

    @property
    def steps(self) -> int:
        """Agent steps in this unroll, T * N."""
        return self.action.size

    def check(self, frame_stack: int) -> None:
        """Raise ``ValueError`` where shapes or dtypes break the contract above."""
        t, n = self.action.shape
        h, w = self.frames.shape[2:]
        expected = {
            "frames": (np.uint8, (t + frame_stack, n, h, w)),
            "action": (np.int64, (t, n)),
            "reward": (np.float32, (t, n)),
            "terminated": (np.bool_, (t, n)),
            "truncated": (np.bool_, (t, n)),
            "log_prob": (np.float32, (t, n)),
            "value": (np.float32, (t, n)),
            "final_frame": (np.uint8, (int(self.truncated.sum()), h, w)),
        }
        if self.priority is not None:
            expected["priority"] = (np.float32, (t, n))
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"unroll.{name}: {array.dtype}{array.shape}, expected {np.dtype(dtype)}{shape}"
                )


@dataclass(frozen=True, slots=True)
class Transitions:
    """B transitions s -> s' over up to n steps, as replay samples them; each frame of one is there once.

    frames_BVHW: uint8 [B, K + n, H, W], a window of the lane: row K - 1 is the newest frame of s, row
    K - 1 + steps that of s'. Rows before ``first`` and after the last needed one repeat their neighbour.
    first_B: int64, the window row of the episode's first frame where it lies within the stack of s, else 0:
    row k of the stack of s is ``max(k, first)``, of the stack of s' ``max(steps + k, first)``.
    steps_B: int64, the m <= n steps that the return spans; fewer where the episode ended.
    action_B: int64. return_B: float32, sum of gamma^j r_j over the m steps.
    discount_B: float32, gamma^m, and 0 where s' is terminal; a truncated s' has its true final frame.
    probability_B: float64, the chance with which one draw takes this transition, over all shards.
    age_B: int64, agent steps that its shard has taken in since. id_B: int64, names it within its shard.
    shard_B: int64.
    """

    frames_BVHW: U8
    first_B: I64
    steps_B: I64
    action_B: I64
    return_B: F32
    discount_B: F32
    probability_B: F64
    age_B: I64
    id_B: I64
    shard_B: I64


@dataclass(frozen=True, slots=True)
class ReplayStats:
    """What a replay, or all shards of one together, holds.

    size: transitions. added: agent steps taken in since it began. mass: the sum of its priorities.
    priority_max: the largest. priority_mean: over those that can be sampled. nbytes: memory in use for
    frames. instance: which life of the shard this is; a restarted one begins empty under another.
    """

    size: int
    added: int
    mass: float
    priority_mean: float
    priority_max: float
    nbytes: int
    instance: str


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """What one ``collect`` returns: the experience, and the episodes that ended while it was made."""

    unroll: Unroll
    episodes: tuple[EpisodeRecord, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a learner says of one step: scalars to log, and which weights it used and made."""

    version: int
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The result of an evaluation protocol on one set of weights."""

    clear_rate: float
    clear_rate_ci: tuple[float, float]
    x_pos: Mapping[str, object]
    episodes: int
    per_level: Mapping[str, Mapping[str, object]]
    protocol: Mapping[str, object]
    seconds: float
    mean_return: float
    ends: Mapping[str, int]

    @property
    def rank(self) -> tuple[float, float]:
        """How checkpoints are ordered: by clear rate, then by mean x-position."""
        mean_x = self.x_pos["mean"]
        assert isinstance(mean_x, float)
        return (self.clear_rate, mean_x)
