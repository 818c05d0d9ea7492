"""A policy acting in N lanes, making unrolls."""

import time
from collections import defaultdict

import numpy as np
import torch

from mario_dist.env import VectorEnv
from mario_dist.nets import ActorCritic, set_weights
from mario_dist.rollout.stack import FrameStack
from mario_dist.types import U8, Arrays, EpisodeRecord, RolloutResult, Unroll, Weights


class RolloutWorker:
    """Collects unrolls of ``length`` steps from ``env`` with ``network``.

    Episodes and unrolls are numbered from 0 within (actor, incarnation). Inference is one batch over all
    lanes, on the network's device.
    """

    def __init__(
        self,
        env: VectorEnv,
        network: ActorCritic,
        *,
        length: int,
        seed: int,
        actor: int = 0,
        incarnation: int = 0,
    ) -> None:
        self._env = env
        self._network = network.eval()
        self._device = next(network.parameters()).device
        self._length = length
        self._actor = actor
        self._incarnation = incarnation
        self._generator = torch.Generator().manual_seed(seed)
        self._stack = FrameStack(env.spec.frame_stack)
        self._started = False
        self._version = -1
        self._unrolls = 0
        self._episodes = 0

    def collect(self, weights: Weights) -> RolloutResult:
        """One unroll with these weights, and the episodes that ended in it."""
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
        finals: list[tuple[int, int, U8]] = []
        episodes: list[EpisodeRecord] = []

        for t in range(t_max):
            at = time.perf_counter()
            action[t], log_prob[t], value[t] = self._act()
            seconds["inference"] += time.perf_counter() - at
            at = time.perf_counter()
            step = self._env.step(action[t])
            seconds["environment"] += time.perf_counter() - at
            reward[t], terminated[t], truncated[t] = step.reward_N, step.terminated_N, step.truncated_N
            frames[t + k] = step.frame_NHW
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
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from a ``state()`` of a worker with the same configuration."""
        prefix = "env."
        self._env.restore({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        self._stack.frames_KNHW = arrays["stack"].astype(np.uint8)
        self._generator.set_state(torch.tensor(arrays["generator"]))
        self._unrolls, self._episodes = (int(count) for count in arrays["counts"])
        self._started = True

    def close(self) -> None:
        self._env.close()

    @torch.no_grad()
    def _act(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample actions: int64 [N], their log-probabilities and the values, float32 [N]."""
        out = self._network(torch.from_numpy(self._stack.stack_NKHW()).to(self._device))
        log_prob_NA = out.logits_BA.log_softmax(-1).cpu()
        action_N = torch.multinomial(log_prob_NA.exp(), 1, generator=self._generator)
        log_prob_N = log_prob_NA.gather(1, action_N).squeeze(1)
        return action_N.squeeze(1).numpy(), log_prob_N.numpy(), out.value_B.cpu().numpy()
