"""A policy acting in N lanes, making unrolls."""

import time
from collections import defaultdict

import numpy as np
import torch

from mario_dist.env import VectorEnv
from mario_dist.nets import NetOut, Network, set_weights
from mario_dist.rollout.policy import Policy, SamplingPolicy
from mario_dist.rollout.priorities import InitialPriorities
from mario_dist.rollout.stack import FrameStack
from mario_dist.types import F32, U8, Arrays, EnvStep, EpisodeRecord, RolloutResult, Unroll, Weights, part


class RolloutWorker:
    """Collects unrolls of ``length`` steps from ``env`` with ``network``.

    Episodes and unrolls are numbered from 0 within (actor, incarnation). Inference is one batch over all
    lanes, on the network's device.
    policy: how it acts, by default by drawing from the logits. priorities: what fills ``Unroll.priority``.
    """

    def __init__(
        self,
        env: VectorEnv,
        network: Network,
        *,
        length: int,
        seed: int,
        actor: int = 0,
        incarnation: int = 0,
        policy: Policy | None = None,
        priorities: InitialPriorities | None = None,
    ) -> None:
        self._env = env
        self._network = network.eval()
        self._device = next(network.parameters()).device
        self._length = length
        self._actor = actor
        self._incarnation = incarnation
        self._policy = policy or SamplingPolicy()
        self._priorities = priorities
        self._generator = torch.Generator().manual_seed(seed)
        self._stack = FrameStack(env.spec.frame_stack)
        self._started = False
        self._version = -1
        self._unrolls = 0
        self._episodes = 0

    def collect(self, weights: Weights, progress: float = 0.0) -> RolloutResult:
        """One unroll with these weights, and the episodes that ended in it.

        ``progress`` is the done part of the run, 0 to 1, for the policy's schedules.
        """
        seconds: dict[str, float] = defaultdict(float)
        if weights.version != self._version:
            set_weights(self._network, weights.arrays)
            self._version = weights.version
        if not self._started:
            self._stack.start(self._env.reset())
            self._started = True

        t_max, n, k = self._length, self._env.n_lanes, self._env.spec.frame_stack
        frames = np.empty((t_max + k, n, *self._env.spec.frame_shape), dtype=np.uint8)
        frames[:k] = self._stack.frames_KNHW
        action = np.empty((t_max, n), dtype=np.int64)
        reward = np.empty((t_max, n), dtype=np.float32)
        terminated = np.empty((t_max, n), dtype=np.bool_)
        truncated = np.empty((t_max, n), dtype=np.bool_)
        log_prob = np.empty((t_max, n), dtype=np.float32)
        value = np.empty((t_max, n), dtype=np.float32)
        q = np.zeros((t_max, n), dtype=np.float32)
        final_value = np.zeros((t_max, n), dtype=np.float32)
        finals: list[tuple[int, int, U8]] = []
        episodes: list[EpisodeRecord] = []

        for t in range(t_max):
            at = time.perf_counter()
            out = self._look(self._stack.stack_NKHW())
            act = self._policy.act(out, progress, self._generator)
            action[t], log_prob[t], value[t] = act.action_N, act.log_prob_N, out.value_B
            if self._priorities is not None:
                q[t] = out.logits_BA.gather(1, act.action_N[:, None])[:, 0]
            seconds["inference"] += time.perf_counter() - at
            at = time.perf_counter()
            step = self._env.step(action[t])
            seconds["environment"] += time.perf_counter() - at
            reward[t], terminated[t], truncated[t] = step.reward_N, step.terminated_N, step.truncated_N
            frames[t + k] = step.frame_NHW
            if self._priorities is not None and step.truncated_N.any():
                final_value[t, step.truncated_N] = self._final_values(step)
            self._stack.push(step.frame_NHW, step.terminated_N | step.truncated_N)
            for row, lane in enumerate(step.final_lane_F):
                if step.truncated_N[lane]:
                    finals.append((t, int(lane), step.final_frame_FHW[row].copy()))
            for episode in step.ended:
                episodes.append(
                    EpisodeRecord(self._actor, self._incarnation, self._episodes, self._version, episode)
                )
                self._episodes += 1

        unroll = Unroll(
            frames=frames,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            log_prob=log_prob,
            value=value,
            final_frame=np.array([f for _, _, f in finals], dtype=np.uint8).reshape(-1, *frames.shape[2:]),
            final_t=np.array([t for t, _, _ in finals], dtype=np.int64),
            final_n=np.array([n for _, n, _ in finals], dtype=np.int64),
            weights_version=self._version,
            actor=self._actor,
            incarnation=self._incarnation,
            sequence=self._unrolls,
            priority=None
            if self._priorities is None
            else self._priorities.priority(
                reward=reward,
                q=q,
                value=value,
                terminated=terminated,
                truncated=truncated,
                final_value=final_value,
            ),
        )
        unroll.check(k)
        self._unrolls += 1
        return RolloutResult(unroll, tuple(episodes), dict(seconds))

    def state(self) -> Arrays:
        """Everything that the next unrolls depend on, the weights aside."""
        arrays: Arrays = {f"env.{name}": array for name, array in self._env.state().items()}
        arrays["stack"] = self._stack.frames_KNHW.copy()
        arrays["generator"] = self._generator.get_state().numpy().copy()
        arrays["counts"] = np.array([self._unrolls, self._episodes], dtype=np.int64)
        if self._priorities is not None:
            arrays |= {f"priorities.{name}": array for name, array in self._priorities.state().items()}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()`` of a worker with the same configuration."""
        self._env.restore(part(arrays, "env."))
        if self._priorities is not None:
            self._priorities.restore(part(arrays, "priorities."))
        self._stack.frames_KNHW = arrays["stack"].astype(np.uint8)
        self._generator.set_state(torch.tensor(arrays["generator"]))
        self._unrolls, self._episodes = (int(count) for count in arrays["counts"])
        self._started = True

    def close(self) -> None:
        self._env.close()

    @torch.no_grad()
    def _look(self, stack_NKHW: U8) -> NetOut:
        out: NetOut = self._network(torch.from_numpy(stack_NKHW).to(self._device))
        return NetOut(out.logits_BA.cpu(), out.value_B.cpu())

    def _final_values(self, step: EnvStep) -> F32:
        """The network's values of the true final frames of the truncated lanes, in their order."""
        row_F = np.flatnonzero(step.truncated_N[step.final_lane_F])
        row_F = row_F[np.argsort(step.final_lane_F[row_F])]
        lane_F = step.final_lane_F[row_F]
        stack_KFHW = self._stack.frames_KNHW[:, lane_F]
        stack_KFHW[:-1] = stack_KFHW[1:]
        stack_KFHW[-1] = step.final_frame_FHW[row_F]
        value: F32 = self._look(stack_KFHW.swapaxes(0, 1).copy(order="C")).value_B.numpy()
        return value
