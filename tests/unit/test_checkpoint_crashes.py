"""Checkpoints through crashes: kills at random and at every system call, calls that fail, power cuts."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mario_dist import checkpoint
from mario_dist.checkpoint import (
    CheckpointError,
    TrainState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
)

FILES = ("arrays.safetensors", "meta.json", "manifest.json")
STEP_3 = "step-000000000003"

SAVES_IN_A_LOOP = """
import sys
from pathlib import Path
import numpy as np
from mario_dist.checkpoint import TrainState, list_checkpoints, mark_best, prune, save_checkpoint

directory = Path(sys.argv[1])
newest = next(iter(list_checkpoints(directory)), None)
n = int(newest.name.removeprefix("step-")) if newest else 0
print("ready", flush=True)
while True:
    n += 1
    state = TrainState({"n": np.full((50, 400), n), "n0": np.array(n)}, {"n": n})
    path = save_checkpoint(directory, n, state)
    if n % 5 == 0:
        mark_best(directory, path, {"n": n})
    prune(directory, keep=3)
"""


def assert_sound(directory: Path) -> list[int]:
    """Every listed checkpoint loads and holds what its name says; so does the best one. Their numbers."""
    numbers = []
    for path in list_checkpoints(directory):
        n = int(path.name.removeprefix("step-"))
        loaded = load_checkpoint(path)
        assert loaded.meta == {"n": n}
        assert (loaded.arrays["n"] == n).all()
        numbers.append(n)
    if (directory / "best.json").exists():
        best = best_checkpoint(directory)
        assert best is not None
        evaluation = json.loads((directory / "best.json").read_text())["evaluation"]
        assert evaluation == load_checkpoint(best).meta
    return numbers


def test_kills_at_random_moments_leave_every_listed_checkpoint_whole(tmp_path: Path) -> None:
    rng, directory = random.Random(0), tmp_path / "checkpoints"
    newest = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_IN_A_LOOP, str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        numbers = assert_sound(directory)
        now = max(numbers, default=0)
        assert now >= newest  # what was once there is not lost
        newest = now
    assert newest > 3
    prune(directory, keep=2)
    assert not list(directory.glob(".*"))


# strace lists the system calls of an operation, then lets each of them in turn kill it, or fail.
HARMED_AT_EVERY_CALL = """
import ctypes, os, re, signal, subprocess, sys
from collections import Counter
from pathlib import Path
import numpy as np
from mario_dist.checkpoint import TrainState, mark_best, prune, save_checkpoint

root, operation, harm = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def state(n, version=0):
    return TrainState({"n": np.full((5, 4), n), "version": np.array(version)}, {"n": n})

def save_replay(folder):
    folder.mkdir()
    for name in ("0", "1"):
        (folder / name).write_bytes(bytes(100))

def before(directory):
    for n in (1, 2, 3):
        save_checkpoint(directory, n, state(n), save_replay)
    mark_best(directory, directory / "step-000000000001", {"n": 1})

def during(directory):
    if operation == "save":
        save_checkpoint(directory, 4, state(4), save_replay)
    elif operation == "replace":
        save_checkpoint(directory, 3, state(3, version=1))
    elif operation == "prune":
        prune(directory, keep=1)
    elif operation == "mark_best":
        mark_best(directory, directory / "step-000000000003", {"n": 3})

def run(name, *options):
    directory = root / name
    subprocess.run(["cp", "-a", root / "whole", directory], check=True)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(0x59616D61, -1)  # PR_SET_PTRACER: anyone may trace it, whatever Yama says
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            during(directory)
        except Exception:  # of whatever kind: the parent sees that it failed, and what is on the disk
            os._exit(1)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    strace = subprocess.Popen(
        ["strace", "-o", root / "trace", *options, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    if "attached" not in strace.stderr.readline():
        os.kill(child, signal.SIGKILL)
        sys.exit("strace may not attach")
    os.kill(child, signal.SIGCONT)
    status = os.waitpid(child, 0)[1]
    strace.communicate()
    return os.waitstatus_to_exitcode(status)

before(root / "whole")
run("unharmed")
seen = Counter()
for call in re.findall(r"^(\\w+)\\(", (root / "trace").read_text(), re.MULTILINE):
    if call != "exit_group":
        seen[call] += 1
        name = f"{call}-{seen[call]}"
        print(name, run(name, "-e", f"inject={call}:{harm}:when={seen[call]}"), flush=True)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("harm", ["signal=SIGKILL", "error=EIO"])
@pytest.mark.parametrize("operation", ["save", "replace", "prune", "mark_best"])
def test_harm_at_any_system_call_leaves_a_sound_directory(operation: str, harm: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HARMED_AT_EVERY_CALL, str(tmp_path / "all"), operation, harm]
    result = subprocess.run(command, capture_output=True, text=True)
    if "may not attach" in result.stderr:
        pytest.skip("strace may not attach to a process")
    assert result.returncode == 0, result.stderr
    codes = {call: int(code) for call, code in map(str.split, result.stdout.splitlines())}
    # The harm was really done.
    if "KILL" in harm:
        assert set(codes.values()) == {-signal.SIGKILL}
    else:
        needed = {
            "save": "write-1 fsync-1 rename-1",
            "replace": "write-1 fsync-1",
            "prune": "rename-1 rmdir-1",
        }
        for call in needed.get(operation, "write-1 fsync-1 rename-1").split():
            assert codes[call] == 1, call
    expected = {"save": {1, 2, 3, 4}, "replace": {1, 2, 3}, "prune": {1, 3}, "mark_best": {1, 2, 3}}[
        operation
    ]
    broken: dict[str, str] = {}
    for call, code in codes.items():
        directory = tmp_path / "all" / call
        try:
            numbers = set(assert_sound(directory))
            assert {1, 3} <= numbers  # the best, and the newest others
            best = best_checkpoint(directory)
            assert best is not None
            assert best.name[-1] in ("13" if operation == "mark_best" else "1")
            if code == 0:  # what says that it is done is done
                assert expected <= numbers
                assert operation != "mark_best" or best.name[-1] == "3"
                assert operation != "replace" or load_checkpoint(directory / STEP_3).arrays["version"] == 1
            prune(directory, keep=9)
            assert not list(directory.glob(".*"))
        except (AssertionError, CheckpointError) as error:
            broken[call] = str(error).splitlines()[0]
    assert not broken, f"of {len(codes)} system calls"


def test_files_are_synced_before_the_rename_that_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was synced, not what was merely written."""
    events: list[str] = []
    fsync, rename = checkpoint.os.fsync, Path.rename

    def recording_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def recording_rename(path: Path, target: Any) -> Path:
        events.append(f"rename {path.name} {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(checkpoint.os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "rename", recording_rename)
    directory = tmp_path / "checkpoints"
    path = save_checkpoint(directory, 1, TrainState({"n": np.zeros(3)}, {}))
    shown = events.index(f"rename .writing-{path.name} {path.name}")
    assert set(events[:shown]) == {*(f"sync {name}" for name in FILES), f"sync .writing-{path.name}"}
    assert events[shown - 2] == "sync manifest.json"  # the last file to be written
    assert events[shown + 1 :] == ["sync checkpoints"]

    events.clear()
    mark_best(directory, path, {})
    assert events == ["sync .writing-best.json", "rename .writing-best.json best.json", "sync checkpoints"]
