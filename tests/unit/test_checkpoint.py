"""Checkpoints: whole or not at all, checked before they are believed, through crashes at any moment."""

import json
import math
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from mario_dist.checkpoint import (
    CheckpointError,
    TrainState,
    best_checkpoint,
    checkpoint_replay,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
)
from mario_dist.cli.target import newest_state
from mario_dist.errors import UserError
from mario_dist.types import Arrays

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
          "float16", "float32", "float64")  # fmt: skip
FILES = ("arrays.safetensors", "meta.json", "manifest.json")


def some_state(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {"weight": rng.normal(size=(3, 5)).astype(np.float32), "version": np.array(seed)}
    return TrainState(arrays, {"counters": {"agent_steps": seed}, "name": "a run", "best": None})


def assert_same(loaded: TrainState, saved: TrainState) -> None:
    assert loaded.meta == saved.meta
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        back = loaded.arrays[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape), name
        assert back.tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoints", 7, some_state())


# Round trips.


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, size=(4, 6, 2), dtype=np.uint8).astype(dtype)
    arrays: Arrays = {
        "plain": values,
        "0-d": np.array(values[1, 2, 1]),
        "empty": values[:0],
        "empty inside": values[:, :0],
        "fortran": np.asfortranarray(values),
        "strided": values[::2, ::-1],
        "transposed": values.transpose(2, 0, 1),
        "one": values[:1, :1, :1],
        "broadcast": np.broadcast_to(values[0, 0], (3, 2)),
    }
    for array in arrays.values():
        array.flags.writeable = False
    state = TrainState(arrays, {})
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, state)), state)


def test_the_ends_of_the_number_line_come_back(tmp_path: Path) -> None:
    state = TrainState(
        {
            "floats": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7976931348623157e308]),
            "ints": np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max]),
        },
        {},
    )
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, state)), state)


@pytest.mark.parametrize("seed", range(10))
def test_any_strided_array_comes_back(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for i in range(20):
        array = rng.normal(size=rng.integers(0, 6, size=rng.integers(0, 5))).astype(rng.choice(DTYPES[-3:]))
        array = array.transpose(rng.permutation(array.ndim))
        arrays[f"{i}.Ünï-code name"] = array[tuple(slice(None, None, int(rng.choice([-2, -1, 1, 3])))
                                                   for _ in range(array.ndim))]  # fmt: skip
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, TrainState(arrays, {}))), TrainState(arrays, {}))


def test_meta_comes_back(tmp_path: Path) -> None:
    meta = {
        "text": "Köln 城 \n",
        "none": None,
        "nested": {"list": [1, 2.5, True, {"a": []}]},
        "big": 10**17,
    }
    state = TrainState({}, meta)
    assert_same(load_checkpoint(save_checkpoint(tmp_path, 1, state)), state)
    loaded = load_checkpoint(save_checkpoint(tmp_path, 2, TrainState({}, {"x": math.nan})))
    assert math.isnan(loaded.meta["x"])


def test_loaded_arrays_are_ones_own(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    loaded.arrays["weight"][:] = 0.0
    assert_same(load_checkpoint(saved), some_state())


def test_nothing_is_pickled(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    with pytest.raises(SafetensorError, match="object"):
        save_checkpoint(saved.parent, 8, TrainState({"objects": np.array([object()])}, {}))
    assert list_checkpoints(saved.parent) == [saved]


def test_meta_that_is_not_json_leaves_the_others_alone(saved: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(saved.parent, 8, TrainState({}, {"path": Path()}))
    with pytest.raises(TypeError):
        save_checkpoint(saved.parent, 7, TrainState({}, {"path": Path()}))
    assert list_checkpoints(saved.parent) == [saved]
    assert_same(load_checkpoint(saved), some_state())


def test_a_checkpoint_of_the_same_steps_is_replaced(saved: Path) -> None:
    assert save_checkpoint(saved.parent, 7, some_state(1)) == saved
    assert list_checkpoints(saved.parent) == [saved]
    assert_same(load_checkpoint(saved), some_state(1))


def test_a_checkpoint_can_be_moved(saved: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "model"
    shutil.copytree(saved, elsewhere)
    assert_same(load_checkpoint(elsewhere), some_state())


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused_by_name(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for length in range(len(whole)):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"{saved}.*{name}"):
            load_checkpoint(saved)
    (saved / name).write_bytes(whole)
    assert_same(load_checkpoint(saved), some_state())


@pytest.mark.parametrize("name", FILES[:2])
def test_every_changed_or_added_byte_is_refused_by_name(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << (at % 8)
        (saved / name).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=rf"{saved} is damaged: {name}"):
            load_checkpoint(saved)
    (saved / name).write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)


def test_a_changed_manifest_is_refused_or_says_the_same(saved: Path) -> None:
    """What it says of the files cannot change unseen; its spaces and its own step count are not used."""
    whole = (saved / "manifest.json").read_bytes()
    refused = 0
    for at in range(len(whole)):
        for bit in (at % 8, (at + 5) % 8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            (saved / "manifest.json").write_bytes(flipped)
            try:
                loaded = load_checkpoint(saved)
            except CheckpointError:
                refused += 1
            else:
                assert_same(loaded, some_state())
    assert refused > 0.9 * 2 * len(whole)


def damages(size: int) -> Iterator[tuple[str, int]]:
    for at in range(0, size, 64 * 2**10):
        yield "cut", at
        yield "flip", at


@pytest.mark.parametrize("name", ["arrays.safetensors", "meta.json", "replay/frames"])
def test_damage_at_every_64_kib_of_a_large_file_is_refused_and_the_one_before_it_is_whole(
    name: str, own_runs: Path
) -> None:
    tmp_path = own_runs / "run" / "checkpoints"
    frames = np.random.default_rng(0).integers(0, 256, size=5 * 2**20, dtype=np.uint8)

    def save_replay(folder: Path) -> None:
        folder.mkdir()
        frames.tofile(folder / "frames")

    one = TrainState(some_state(1).arrays, {**some_state(1).meta, "workers": []})
    before = save_checkpoint(tmp_path, 1, one)
    large = TrainState({"frames": frames}, {"text": "ü" * 2**18, "workers": []})
    newest = save_checkpoint(tmp_path, 2, large, save_replay)
    refused, (path, whole) = 0, (newest / name, (newest / name).read_bytes())
    for what, at in damages(len(whole)):
        with path.open("r+b") as file:
            if what == "cut":
                file.truncate(at)
            else:
                file.seek(at)
                file.write(bytes([whole[at] ^ 1 << (at // 2**16 % 8)]))
        with pytest.raises(CheckpointError, match=rf"{newest} is damaged: {name}"):
            checkpoint_replay(newest) if name.startswith("replay") else load_checkpoint(newest)
        refused += 1
        if at == 2**16 and not name.startswith("replay"):
            notes: list[str] = []
            found = newest_state("run", notes.append)
            assert found is not None
            assert found[1] == before
            assert notes == [f"{newest} is damaged: {name} is not what was written; trying the one before it"]
        path.write_bytes(whole)
    assert refused == 2 * -(-len(whole) // 2**16) > 40
    assert list_checkpoints(tmp_path) == [newest, before]
    assert_same(load_checkpoint(before), one)
    assert_same(load_checkpoint(newest), large)
    assert checkpoint_replay(newest) == newest / "replay"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{saved}.*{name}"):
        load_checkpoint(saved)
    (saved / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{saved}.*{name}"):
        load_checkpoint(saved)


def test_files_of_another_checkpoint_are_refused(saved: Path) -> None:
    other = save_checkpoint(saved.parent, 8, some_state(1))
    for name in FILES:
        kept = (saved / name).read_bytes()
        shutil.copy(other / name, saved / name)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(saved)
        (saved / name).write_bytes(kept)


MANIFESTS = [
    "{}",
    "[]",
    "null",
    "1",
    '{"format": 2}',
    '{"format": "1"}',
    '{"format": 1}',
    '{"format": 1, "files": {}}',
    '{"format": 1, "files": null}',
    '{"format": 1, "files": ["arrays.safetensors", "meta.json"]}',
    '{"name": "a web app", "icons": [], "start_url": "/"}',
    "\udcff",
    "[" * 100_000,
    '{"format": 1, "files": ' + "[" * 100_000,
]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda text: text[:40])
def test_a_directory_of_something_else_is_refused(manifest: str, saved: Path) -> None:
    (saved / "manifest.json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=str(saved)):
        load_checkpoint(saved)


def test_places_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "nowhere"):
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            load_checkpoint(tmp_path / name)


# Housekeeping.


def test_checkpoints_are_listed_newest_first(tmp_path: Path) -> None:
    steps = [5, 1000, 0, 999_999, 70, 1_000_000]
    paths = {n: save_checkpoint(tmp_path, n, TrainState({}, {})) for n in steps}
    assert list_checkpoints(tmp_path) == [paths[n] for n in sorted(steps, reverse=True)]
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 50])
@pytest.mark.parametrize("best", [None, 10, 40, 60])
def test_prune_keeps_the_newest_and_the_best(keep: int, best: int | None, tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, n, some_state(n)) for n in range(10, 70, 10)]
    if best is not None:
        mark_best(tmp_path, tmp_path / f"step-{best:012d}", {"clear_rate": 0.5})
    prune(tmp_path, keep)
    expected = set(paths[max(0, len(paths) - keep) :])
    if best is not None:
        expected.add(tmp_path / f"step-{best:012d}")
    assert set(list_checkpoints(tmp_path)) == expected
    for path in expected:
        assert_same(load_checkpoint(path), some_state(int(path.name.removeprefix("step-"))))


def test_half_written_leftovers_are_not_listed_and_are_cleaned(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, 1, some_state())
    (tmp_path / ".writing-step-000000000002").mkdir()
    (tmp_path / ".writing-step-000000000002" / "meta.json").write_text("{")
    (tmp_path / ".writing-best.json").write_text("{")
    assert list_checkpoints(tmp_path) == [whole]
    assert best_checkpoint(tmp_path) is None
    prune(tmp_path, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [whole.name]


def test_a_leftover_of_the_same_steps_does_not_leak_into_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-000000000002").mkdir()
    (tmp_path / ".writing-step-000000000002" / "extra").write_text("from before the crash")
    path = save_checkpoint(tmp_path, 2, some_state())
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)


def test_best_is_what_was_marked_last(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    first, second = (save_checkpoint(tmp_path, n, some_state(n)) for n in (1, 2))
    mark_best(tmp_path, second, {"clear_rate": 0.1})
    assert best_checkpoint(tmp_path) == second
    mark_best(tmp_path, first, {"clear_rate": 0.9})
    assert best_checkpoint(tmp_path) == first
    assert json.loads((tmp_path / "best.json").read_text())["evaluation"] == {"clear_rate": 0.9}
    shutil.rmtree(first)
    assert best_checkpoint(tmp_path) is None


NAMES_NO_CHECKPOINT = ["", "{", "[]", "{}", "null", "[" * 200_000, '{"checkpoint": "/etc/passwd"}',
                       '{"checkpoint": ""}', '{"checkpoint": "step-1/meta.json"}']  # fmt: skip


@pytest.mark.parametrize("content", NAMES_NO_CHECKPOINT, ids=lambda text: text[:40])
def test_while_best_is_damaged_no_checkpoint_is_removed(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [save_checkpoint(tmp_path, n, some_state()) for n in (1, 2)]
    mark_best(tmp_path, paths[0], {})
    (tmp_path / "best.json").write_text(content)
    assert best_checkpoint(tmp_path) is None
    prune(tmp_path, keep=1)
    assert len(list_checkpoints(tmp_path)) == 2
    assert f"cannot read {tmp_path / 'best.json'}" in caplog.text
    mark_best(tmp_path, paths[1], {})
    prune(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [paths[1]]


def test_no_flipped_bit_of_best_costs_a_checkpoint(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, n, some_state()) for n in (2, 1)]
    mark_best(tmp_path, paths[1], {"clear_rate": 0.5})
    whole = (tmp_path / "best.json").read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << (at % 8)
        (tmp_path / "best.json").write_bytes(flipped)
        prune(tmp_path, keep=1)
        assert set(list_checkpoints(tmp_path)) == set(paths)


def test_best_of_an_older_version_has_no_digest(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, some_state())
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": path.name, "evaluation": {}}))
    assert best_checkpoint(tmp_path) == path


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(saved: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot read the checkpoints in {saved.parent}: Too many open"):
            list_checkpoints(saved.parent)
        prune(saved.parent, keep=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list_checkpoints(saved.parent) == [saved]
