from collections import deque

import numpy as np
import pytest

from mario_dist.rollout import FrameStack


@pytest.mark.parametrize("frame_stack", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_stack_is_the_last_frames_of_the_episode(frame_stack: int, seed: int) -> None:
    """Against one plain queue a lane, which an episode's first frame fills."""
    rng = np.random.default_rng(seed)

    def frames() -> np.ndarray:
        return rng.integers(0, 256, size=(3, 2, 5), dtype=np.uint8)

    stack, newest = FrameStack(frame_stack), frames()
    stack.start(newest)
    queues = [deque([frame] * frame_stack, maxlen=frame_stack) for frame in newest.copy()]
    for _ in range(40):
        assert np.array_equal(stack.stack_NKHW(), np.array([list(queue) for queue in queues]))
        newest, first_N = frames(), rng.random(3) < 0.3
        stack.push(newest, first_N)
        for lane, queue in enumerate(queues):
            queue.extend([newest[lane]] * (frame_stack if first_N[lane] else 1))


@pytest.mark.parametrize(("frame_stack", "lanes"), [(4, 2), (1, 2), (4, 1), (1, 1)])
def test_stacks_are_copies_with_lanes_first(frame_stack: int, lanes: int) -> None:
    stack, frame = FrameStack(frame_stack), np.ones((lanes, 3, 5), dtype=np.uint8)
    stack.start(frame)
    seen = stack.stack_NKHW()
    assert seen.shape == (lanes, frame_stack, 3, 5)
    assert seen.flags.c_contiguous
    frame[:] = 7  # the environment's buffer goes on changing
    assert (stack.stack_NKHW() == 1).all()
    stack.push(frame, np.zeros(lanes, dtype=np.bool_))
    assert (seen == 1).all()
    assert stack.stack_NKHW()[:, :, 0, 0].tolist() == [[1] * (frame_stack - 1) + [7]] * lanes
