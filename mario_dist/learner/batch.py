"""From experience to what a loss wants: on the device, stacks rebuilt by index."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mario_dist.algos.apex import ReplayBatch
from mario_dist.algos.api import Batch
from mario_dist.types import F32, I64, Bool, Transitions, Unroll


def stack_index(end_TN: Bool, frame_stack: int) -> I64:
    """For each observation of an unroll, the time rows of its stack: int64 [T + 1, N, K].

    Row t + K - 1 is the newest frame of observation t. A stack never reaches back over the start of its
    episode: the episode's first frame stands in, as it did when the policy acted.
    """
    t_max, n = end_TN.shape
    first_row_TN = np.zeros((t_max + 1, n), dtype=np.int64)
    for t in range(t_max):
        # After an end at t, observation t + 1 is a first one, and its newest frame is row t + K.
        first_row_TN[t + 1] = np.where(end_TN[t], t + frame_stack, first_row_TN[t])
    row_TK = np.arange(t_max + 1)[:, None] + np.arange(frame_stack)[None, :]
    return np.maximum(row_TK[:, None, :], first_row_TN[:, :, None])


def make_batch(unrolls: Sequence[Unroll], frame_stack: int, device: torch.device) -> Batch:
    """Concatenate unrolls of equal length over their lanes and move them to ``device``."""
    lanes = np.cumsum([0] + [u.action.shape[1] for u in unrolls])
    end_TN = np.concatenate([u.terminated | u.truncated for u in unrolls], axis=1)
    index_TNK = stack_index(end_TN, frame_stack)
    n = end_TN.shape[1]
    # Row r of lane n is r * N + n in the flattened frames.
    flat_TNK = index_TNK * n + np.arange(n)[None, :, None]

    frames_RNHW = np.concatenate([u.frames for u in unrolls], axis=1)
    height, width = frames_RNHW.shape[2:]
    frames_RHW = frames_RNHW.reshape(-1, height, width)
    finals = [
        (u.final_t[f], u.final_n[f] + lanes[i]) for i, u in enumerate(unrolls) for f in range(len(u.final_t))
    ]
    final_tn_F2 = np.array(finals, dtype=np.int64).reshape(-1, 2)
    t_F, n_F = final_tn_F2.T
    # The stack at the true end: the last K - 1 frames that the policy saw, then the final frame.
    final_row_F1 = np.arange(len(finals))[:, None] + len(frames_RHW)
    final_index_FK = np.concatenate([flat_TNK[t_F, n_F, 1:], final_row_F1], axis=1)
    if finals:
        frames_RHW = np.concatenate([frames_RHW, *(u.final_frame for u in unrolls)])

    def beside(name: str) -> Tensor:
        return _to_device(np.concatenate([getattr(u, name) for u in unrolls], axis=1), device)

    return Batch(
        frames_RHW=_to_device(frames_RHW, device),
        stack_index_TNK=_to_device(flat_TNK[:-1], device),
        bootstrap_index_NK=_to_device(flat_TNK[-1], device),
        final_index_FK=_to_device(final_index_FK, device),
        final_tn_F2=_to_device(final_tn_F2, device),
        action_TN=beside("action"),
        reward_TN=beside("reward"),
        terminated_TN=beside("terminated"),
        truncated_TN=beside("truncated"),
        log_prob_TN=beside("log_prob"),
        value_TN=beside("value"),
        weights_versions=tuple(u.weights_version for u in unrolls),
    )


def make_replay_batch(
    sample: Transitions, weight_B: F32, frame_stack: int, device: torch.device
) -> ReplayBatch:
    """Rebuild the stacks of sampled transitions, on ``device``: a frame travels there once."""
    count, window = sample.frames_BVHW.shape[:2]
    frames_RHW = _to_device(sample.frames_BVHW, device).flatten(0, 1)
    base_B1 = np.arange(count)[:, None] * window
    row_1K = np.arange(frame_stack)[None]
    first_B1 = sample.first_B[:, None]
    index_BK = base_B1 + np.maximum(row_1K, first_B1)
    next_index_BK = base_B1 + np.maximum(sample.steps_B[:, None] + row_1K, first_B1)

    def stacks(index: I64) -> Tensor:
        # One flat index_select: several times as fast on a CPU as indexing with a table.
        flat = torch.index_select(frames_RHW, 0, _to_device(index.ravel(), device))
        return flat.view(count, frame_stack, *frames_RHW.shape[1:])

    return ReplayBatch(
        stack_BKHW=stacks(index_BK),
        next_stack_BKHW=stacks(next_index_BK),
        action_B=_to_device(sample.action_B, device),
        return_B=_to_device(sample.return_B, device),
        discount_B=_to_device(sample.discount_B, device),
        weight_B=_to_device(weight_B, device),
    )


def _to_device(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
