"""From unrolls to what a loss wants: concatenated over lanes, on the device, stacks rebuilt by index."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mario_dist.algos.api import Batch
from mario_dist.types import I64, Bool, Unroll


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

    def to_device(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
        )

    def beside(name: str) -> Tensor:
        return to_device(np.concatenate([getattr(u, name) for u in unrolls], axis=1))

    return Batch(
        frames_RHW=to_device(frames_RHW),
        stack_index_TNK=to_device(flat_TNK[:-1]),
        bootstrap_index_NK=to_device(flat_TNK[-1]),
        final_index_FK=to_device(final_index_FK),
        final_tn_F2=to_device(final_tn_F2),
        action_TN=beside("action"),
        reward_TN=beside("reward"),
        terminated_TN=beside("terminated"),
        truncated_TN=beside("truncated"),
        log_prob_TN=beside("log_prob"),
        value_TN=beside("value"),
        weights_versions=tuple(u.weights_version for u in unrolls),
    )
