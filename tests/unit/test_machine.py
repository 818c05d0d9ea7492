"""What this process runs on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mario_dist import machine


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "module.py").touch()
    (folder / ".gitignore").write_text(".venv/\n")
    git(folder, "init", "--quiet")
    return folder


def commit(folder: Path) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "a")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("where", [".", "package", "package/module.py"])
def test_git_state_of_a_clean_and_a_changed_tree(repository: Path, where: str) -> None:
    head = commit(repository)
    assert machine.git_state(repository / where) == (head, False)
    (repository / "new.py").touch()
    assert machine.git_state(repository / where) == (head, True)


def test_git_state_before_the_first_commit(repository: Path) -> None:
    assert machine.git_state(repository) == (None, True)


def test_git_state_outside_a_repository(tmp_path: Path) -> None:
    assert machine.git_state(tmp_path) == (None, None)


def test_git_state_of_a_package_installed_inside_somebody_elses_repository(repository: Path) -> None:
    commit(repository)
    installed = repository / ".venv" / "lib" / "mario_dist"
    installed.mkdir(parents=True)
    assert machine.git_state(installed) == (None, None)


def test_git_state_inside_a_git_hook(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = commit(repository)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    assert machine.git_state(repository) == (head, False)


def test_git_state_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert machine.git_state(repository) == (None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has CPU affinity")
def test_cores_are_those_of_the_affinity() -> None:
    program = (
        "import os; from mario_dist import machine;"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(machine.cores())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("100000 100000", 1), ("100000000 100000", None)]
)
def test_cores_are_capped_by_the_cgroup(
    quota: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = machine.cores()
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(machine, "cgroup_dirs", lambda: [tmp_path])
    assert machine.cores() == (free if expected is None else expected)


def test_the_tightest_quota_of_all_levels_counts(tmp_path: Path) -> None:
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("400000 100000\n")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{2**31}\n")
    listing = tmp_path / "listing"
    listing.write_text("0::/pod/container\n")
    dirs = machine.cgroup_dirs(tmp_path, listing)
    assert dirs == [inner, inner.parent, tmp_path]
    assert machine.cgroup_cores(dirs) == 1.5
    assert machine.cgroup_memory_bytes(dirs) == 2**31


def test_version_1_cgroups_and_a_path_that_only_the_host_has(tmp_path: Path) -> None:
    for controller in ("cpu,cpuacct", "memory"):
        (tmp_path / controller).mkdir()
    (tmp_path / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu,cpuacct" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**32}\n")
    listing = tmp_path / "listing"
    listing.write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n")
    dirs = machine.cgroup_dirs(tmp_path, listing)
    assert machine.cgroup_cores(dirs) == 3.0
    assert machine.cgroup_memory_bytes(dirs) == 2**32


@pytest.mark.parametrize("quota", ["-1", ""])
def test_no_quota_in_version_1(quota: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert machine.cgroup_cores([tmp_path]) is None
    assert machine.cgroup_memory_bytes([tmp_path]) is None


def test_memory_is_capped_by_the_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = machine.memory_gib()
    monkeypatch.setattr(machine, "cgroup_dirs", lambda: [tmp_path])
    (tmp_path / "memory.limit_in_bytes").write_text(str(2**63 - 4096))  # version 1's "no limit"
    assert machine.memory_gib() >= total
    (tmp_path / "memory.limit_in_bytes").write_text(str(2**28))
    assert machine.memory_gib() == 0.25


def test_versions_import_nothing_heavy() -> None:
    program = (
        "import json, sys; from mario_dist import machine; found = machine.versions();"
        "assert not {'torch', 'ray', 'numpy', 'mlflow'} & set(sys.modules); print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found == machine.versions()
    assert {"python", "mario-dist", "torch", "ray", "gymnasium", "nes-py"} <= set(found)


def test_description_is_json_able_and_says_what_matters() -> None:
    found = machine.describe()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"platform", "cpu", "cores", "memory_gib", "gpus", "python", "versions"}
    assert found["cpu"]
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0.1 < machine.memory_gib() < 1e5


def test_available_memory_is_what_is_free_and_what_the_cgroup_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = machine.available_gib()
    assert 0.0 < free <= machine.memory_gib()
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    monkeypatch.setattr(machine, "cgroup_dirs", lambda: [tmp_path])
    assert machine.available_gib() == pytest.approx(0.5)
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**28}\nactive_file 7\n")
    assert machine.available_gib() == pytest.approx(0.75), "cached files can be taken back"


def test_busy_core_seconds_grow_with_work() -> None:
    before = machine.busy_core_seconds()
    assert before is not None
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    after = machine.busy_core_seconds()
    assert after is not None
    assert after - before >= 0.2
