"""The replay in a checkpoint: in the newest alone, whole or named as damaged."""

from pathlib import Path

import numpy as np
import pytest

from mario_dist.checkpoint import (
    CheckpointError,
    TrainState,
    checkpoint_replay,
    list_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
    set_aside_newer,
)

STATE = TrainState({"weight": np.arange(6.0)}, {"counters": {"agent_steps": 0}})


def is_whole(path: Path) -> bool:
    loaded = load_checkpoint(path)
    return loaded.meta == STATE.meta and np.array_equal(loaded.arrays["weight"], STATE.arrays["weight"])


def write_replay(folder: Path) -> None:
    """As shards do: folders of arrays."""
    for shard in range(2):
        (folder / f"shard-{shard}").mkdir(parents=True)
        np.save(folder / f"shard-{shard}" / "reward.npy", np.arange(5) + shard)


def test_only_the_newest_checkpoint_has_the_replay(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, steps, STATE, write_replay) for steps in (1, 2, 3)]
    assert [checkpoint_replay(p) is not None for p in paths] == [False, False, True]
    assert np.array_equal(np.load(paths[2] / "replay/shard-1/reward.npy"), np.arange(5) + 1)
    for path in paths:
        assert is_whole(path)
    plain = save_checkpoint(tmp_path, 4, STATE)
    assert [checkpoint_replay(p) is not None for p in (*paths, plain)] == [False] * 4
    prune(tmp_path, keep=4)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_checkpoint_that_is_set_aside_loses_its_replay(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, STATE)
    save_checkpoint(tmp_path, 2, STATE, write_replay)
    (aside,) = set_aside_newer(tmp_path, 1)
    assert checkpoint_replay(aside) is None
    assert is_whole(aside)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "more"])
def test_a_damaged_replay_is_named(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, 1, STATE, write_replay)
    file = path / "replay/shard-0/reward.npy"
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    elif damage == "more":
        file.write_bytes(content + b"x")
    else:
        file.write_bytes(content[:-1] + (b"" if damage == "cut" else bytes([content[-1] ^ 1])))
    with pytest.raises(CheckpointError, match=r"damaged: .*replay/shard-0/reward.npy"):
        checkpoint_replay(path)
    assert is_whole(path), "the policy in it"


def test_a_replay_that_cannot_be_written_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, STATE, write_replay)

    def fail(folder: Path) -> None:
        write_replay(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, STATE, fail)
    assert list_checkpoints(tmp_path) == [first]
    assert checkpoint_replay(first) is not None
