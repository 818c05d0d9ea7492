"""A policy acting in N lanes, making unrolls."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mario_dist.env import VectorEnv
from mario_dist.nets import Network
from mario_dist.rollout.inference import Inference, OwnNetwork
from mario_dist.rollout.policy import Policy, SamplingPolicy
from mario_dist.rollout.priorities import InitialPriorities
from mario_dist.rollout.stack import FrameStack
from mario_dist.types import (
    F32,
    I64,
    U8,
    Arrays,
    EnvStep,
    EpisodeRecord,
    RolloutResult,
    Unroll,
    Weights,
    part,
)


class _Group:
    """Some lanes of a worker, which step together; with a ``pool``, in a thread of its own."""

    def __init__(self, env: VectorEnv, first: int, pool: ThreadPoolExecutor | None) -> None:
        self.env = env
        self.lanes = slice(first, first + env.n_lanes)
        self.stack = FrameStack(env.spec.frame_stack)
        self.wall_s = self.cpu_s = 0.0
        self._pool = pool
        # Alone in its process, it counts the emulation's threads too.
        self._cpu: Callable[[], float] = time.process_time if pool is None else time.thread_time
        self._step: Future[EnvStep] | EnvStep | None = None

    def begin(self, action_N: I64) -> None:
        self._step = self._pool.submit(self._run, action_N) if self._pool else self._run(action_N)

    def end(self) -> EnvStep:
        """What the step that was begun last came to."""
        step, self._step = self._step, None
        assert step is not None
        return step.result() if isinstance(step, Future) else step

    def _run(self, action_N: I64) -> EnvStep:
        at, cpu = time.perf_counter(), self._cpu()
        step = self.env.step(action_N)
        self.wall_s += time.perf_counter() - at
        self.cpu_s += self._cpu() - cpu
        return step


class _Tape:
    """The arrays of one unroll while it is made; see ``types.Unroll``."""

    def __init__(self, t_max: int, n: int, k: int, frame_shape: tuple[int, int]) -> None:
        self.frames: U8 = np.empty((t_max + k, n, *frame_shape), dtype=np.uint8)
        self.action: I64 = np.empty((t_max, n), dtype=np.int64)
        self.reward: F32 = np.empty((t_max, n), dtype=np.float32)
        self.terminated = np.empty((t_max, n), dtype=np.bool_)
        self.truncated = np.empty((t_max, n), dtype=np.bool_)
        self.log_prob: F32 = np.empty((t_max, n), dtype=np.float32)
        self.value: F32 = np.empty((t_max, n), dtype=np.float32)
        # For initial priorities: of the action taken, and of true final frames.
        self.q: F32 = np.zeros((t_max, n), dtype=np.float32)
        self.final_value: F32 = np.zeros((t_max, n), dtype=np.float32)
        self.finals: list[tuple[int, int, U8]] = []
        self.episodes: list[EpisodeRecord] = []
        self.versions: set[int] = set()
        self.seconds: dict[str, float] = defaultdict(float)


class RolloutWorker:
    """Collects unrolls of ``length`` steps from ``env`` with ``network``.

    env: one, or several groups of lanes that take turns: while one steps, in a thread, the next is looked at.
    network: or whatever else computes the policy. Episodes and unrolls are numbered from 0 within (actor,
    incarnation). policy: how it acts, by default by drawing from the logits. priorities: what fills
    ``Unroll.priority``.
    """

    def __init__(
        self,
        env: VectorEnv | Sequence[VectorEnv],
        network: Network | Inference,
        *,
        length: int,
        seed: int,
        actor: int = 0,
        incarnation: int = 0,
        policy: Policy | None = None,
        priorities: InitialPriorities | None = None,
    ) -> None:
        envs = env if isinstance(env, Sequence) else [env]
        self._pool = ThreadPoolExecutor(len(envs)) if len(envs) > 1 else None
        first = np.cumsum([0, *(e.n_lanes for e in envs)]).tolist()
        self._groups = [_Group(e, start, self._pool) for e, start in zip(envs, first, strict=False)]
        self._lanes = first[-1]
        self._spec = envs[0].spec
        self._inference = OwnNetwork(network) if isinstance(network, nn.Module) else network
        self._cpu = time.process_time if self._pool is None else time.thread_time
        self._length = length
        self._actor = actor
        self._incarnation = incarnation
        self._policy = policy or SamplingPolicy()
        self._priorities = priorities
        self._generator = torch.Generator().manual_seed(seed)
        self._started = False
        self._unrolls = 0
        self._episodes = 0

    def collect(self, weights: Weights, progress: float = 0.0) -> RolloutResult:
        """One unroll with these weights, and the episodes that ended in it.

        ``progress`` is the done part of the run, 0 to 1, for the policy's schedules.
        """
        self._inference.load(weights)
        if not self._started:
            for group in self._groups:
                group.stack.start(group.env.reset())
            self._started = True
        t_max, k = self._length, self._spec.frame_stack
        tape = _Tape(t_max, self._lanes, k, self._spec.frame_shape)
        for group in self._groups:
            tape.frames[:k, group.lanes] = group.stack.frames_KNHW
            group.wall_s = group.cpu_s = 0.0
        for t in range(t_max):
            for index, group in enumerate(self._groups):
                if t:
                    self._record(tape, t - 1, group)
                self._act(tape, t, index, group, progress)
        for group in self._groups:
            self._record(tape, t_max - 1, group)
        tape.seconds["environment"] = sum(group.wall_s for group in self._groups)
        tape.seconds["environment_cpu"] = sum(group.cpu_s for group in self._groups)
        unroll = self._unroll(tape)
        unroll.check(k)
        self._unrolls += 1
        return RolloutResult(unroll, tuple(tape.episodes), dict(tape.seconds))

    def _act(self, tape: _Tape, t: int, index: int, group: _Group, progress: float) -> None:
        """Look at a group's observation, and begin the step with what it does there."""
        at, cpu = time.perf_counter(), self._cpu()
        out, version = self._inference.look(index, group.stack)
        act = self._policy.act(out, progress, self._generator, group.lanes)
        tape.versions.add(version)
        tape.action[t, group.lanes] = act.action_N
        tape.log_prob[t, group.lanes] = act.log_prob_N
        tape.value[t, group.lanes] = out.value_B
        if self._priorities is not None:
            tape.q[t, group.lanes] = out.logits_BA.gather(1, act.action_N[:, None])[:, 0]
        tape.seconds["inference"] += time.perf_counter() - at
        tape.seconds["inference_cpu"] += self._cpu() - cpu
        group.begin(tape.action[t, group.lanes])

    def _record(self, tape: _Tape, t: int, group: _Group) -> None:
        """Keep what a group's step t came to."""
        step, lanes, first = group.end(), group.lanes, group.lanes.start
        tape.reward[t, lanes] = step.reward_N
        tape.terminated[t, lanes], tape.truncated[t, lanes] = step.terminated_N, step.truncated_N
        tape.frames[t + self._spec.frame_stack, lanes] = step.frame_NHW
        if self._priorities is not None and step.truncated_N.any():
            tape.final_value[t, first + np.flatnonzero(step.truncated_N)] = self._final_values(group, step)
        group.stack.push(step.frame_NHW, step.terminated_N | step.truncated_N)
        for row, lane in enumerate(step.final_lane_F):
            if step.truncated_N[lane]:
                tape.finals.append((t, first + int(lane), step.final_frame_FHW[row].copy()))
        for episode in step.ended:
            shifted = replace(episode, lane=first + episode.lane) if first else episode
            tape.episodes.append(
                EpisodeRecord(self._actor, self._incarnation, self._episodes, max(tape.versions), shifted)
            )
            self._episodes += 1

    def _unroll(self, tape: _Tape) -> Unroll:
        return Unroll(
            frames=tape.frames,
            action=tape.action,
            reward=tape.reward,
            terminated=tape.terminated,
            truncated=tape.truncated,
            log_prob=tape.log_prob,
            value=tape.value,
            final_frame=np.array([f for *_, f in tape.finals], dtype=np.uint8).reshape(
                -1, *tape.frames.shape[2:]
            ),
            final_t=np.array([t for t, _, _ in tape.finals], dtype=np.int64),
            final_n=np.array([n for _, n, _ in tape.finals], dtype=np.int64),
            weights_version=min(tape.versions),
            actor=self._actor,
            incarnation=self._incarnation,
            sequence=self._unrolls,
            priority=None
            if self._priorities is None
            else self._priorities.priority(
                reward=tape.reward,
                q=tape.q,
                value=tape.value,
                terminated=tape.terminated,
                truncated=tape.truncated,
                final_value=tape.final_value,
            ),
        )

    def state(self) -> Arrays:
        """Everything that the next unrolls depend on, the weights aside."""
        arrays: Arrays = {}
        for index, group in enumerate(self._groups):
            name = str(index or "")
            arrays |= {f"env{name}.{key}": array for key, array in group.env.state().items()}
            arrays[f"stack{name}"] = group.stack.frames_KNHW.copy()
        arrays["generator"] = self._generator.get_state().numpy().copy()
        arrays["counts"] = np.array([self._unrolls, self._episodes], dtype=np.int64)
        if self._priorities is not None:
            arrays |= {f"priorities.{name}": array for name, array in self._priorities.state().items()}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()`` of a worker with the same configuration."""
        for index, group in enumerate(self._groups):
            name = str(index or "")
            group.env.restore(part(arrays, f"env{name}."))
            group.stack.frames_KNHW = arrays[f"stack{name}"].astype(np.uint8)
        if self._priorities is not None:
            self._priorities.restore(part(arrays, "priorities."))
        self._generator.set_state(torch.tensor(arrays["generator"]))
        self._unrolls, self._episodes = (int(count) for count in arrays["counts"])
        self._started = True

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for group in self._groups:
            group.env.close()

    def _final_values(self, group: _Group, step: EnvStep) -> F32:
        """The network's values of the true final frames of the truncated lanes, in their order."""
        row_F = np.flatnonzero(step.truncated_N[step.final_lane_F])
        row_F = row_F[np.argsort(step.final_lane_F[row_F])]
        lane_F = step.final_lane_F[row_F]
        stack_KFHW = group.stack.frames_KNHW[:, lane_F]
        stack_KFHW[:-1] = stack_KFHW[1:]
        stack_KFHW[-1] = step.final_frame_FHW[row_F]
        return self._inference.values(stack_KFHW.swapaxes(0, 1).copy(order="C"))
