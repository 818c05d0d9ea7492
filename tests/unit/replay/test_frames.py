"""Both stores give back what they were given, within the memory that they planned."""

import numpy as np
import pytest

from mario_dist.env import EnvConfig, make_env
from mario_dist.replay.frames import Lz4Frames, RawFrames, planned_bytes
from mario_dist.types import U8

ROWS, SHAPE = 6, (20, 20)


def blocks(count: int, seed: int, noise: float) -> list[U8]:
    """Frames of flat stripes, with this share of noise, which does not compress."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        flat = np.repeat(rng.integers(0, 256, (ROWS, 20, 1)), 20, axis=2).astype(np.uint8)
        noisy = rng.random(flat.shape) < noise
        made.append(np.where(noisy, rng.integers(0, 256, flat.shape), flat).astype(np.uint8))
    return made


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", [RawFrames, Lz4Frames])
def test_frames_come_back_while_old_ones_make_room(kind: type[RawFrames | Lz4Frames], noise: float) -> None:
    store, living = kind(4, ROWS, SHAPE), {}
    size = len(store._arena) if isinstance(store, Lz4Frames) else store._frames.nbytes
    order: list[int] = []
    for number, frames in enumerate(blocks(40, 1, noise)):
        packed = store.pack(frames)
        while len(order) == 4 or not store.fits(packed):
            store.drop_oldest()
            del living[order.pop(0)]
        place = number % 4
        store.put(place, packed)
        order.append(number)
        living[number] = frames
        for kept, content in living.items():
            rows = (kept % 4) * ROWS + np.arange(ROWS)
            np.testing.assert_array_equal(store.take(rows[None])[0], content)
        assert store.nbytes <= size
    # Noise takes more than was planned for a frame: fewer blocks, not more memory.
    if isinstance(store, Lz4Frames):
        assert len(order) == 4 if noise == 0.0 else 2 <= len(order) < 4


def test_marios_frames_fit_the_plan() -> None:
    """84 x 84 frames of real play in under 2 kB each, and a ring of them never short of room."""
    env = make_env(EnvConfig(), 4, (0,))
    rng = np.random.default_rng(0)
    frames = [env.reset().copy()]
    for _ in range(149):
        frames.append(env.step(rng.choice([1, 2, 3, 4], 4)).frame_NHW.copy())
    env.close()
    frames_RHW = np.stack(frames).reshape(-1, 84, 84)
    store = Lz4Frames(1, len(frames_RHW), (84, 84))
    store.put(0, store.pack(frames_RHW))
    assert store.nbytes / len(frames_RHW) < 1_900
    np.testing.assert_array_equal(store.take(np.arange(600)[None])[0], frames_RHW)
    assert planned_bytes("lz4", (84, 84)) <= 2_000
    assert planned_bytes("none", (84, 84)) <= 7_300


def test_state_of_another_size_is_refused() -> None:
    for kind in (RawFrames, Lz4Frames):
        large, little = kind(8, ROWS, SHAPE), kind(2, ROWS, SHAPE)
        for number, frames in enumerate(blocks(8, 0, 0.5)):
            large.put(number, large.pack(frames))
        with pytest.raises(ValueError, match="do not fit"):
            little.restore(large.state(8))
