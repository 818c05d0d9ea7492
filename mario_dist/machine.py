"""What this process runs on: hardware, versions and the state of the source tree.

Standard library only (PyTorch is asked for GPUs where it is installed), so that every room and every
worker image can import it.
"""

import ctypes
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "mario-dist",
    "torch",
    "numpy",
    "ray",
    "gymnasium",
    "nes-py",
    "gym-super-mario-bros",
    "opencv-python",
    "safetensors",
    "sqlalchemy",
    "mlflow",
    "pydantic",
    "av",
)
"""The distributions whose versions can change a run's results or its files."""

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_TIMEOUT_S = 10.0
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def describe() -> dict[str, object]:
    """The machine as JSON-able values. Imports PyTorch where it is installed, to name the GPUs."""
    return {
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory_gib(), 1),
        "gpus": gpus(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def cores() -> int:
    """Logical cores that this process may keep busy: its CPU affinity, capped by its cgroup's quota."""
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cgroup_cores(cgroup_dirs())
    # A thread above the quota is throttled, so a fraction of a core counts for nothing.
    return max(1, min(affinity, math.floor(quota)) if quota is not None else affinity)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc.

    By default glibc gives every large block back to the kernel at once, and each batch of a learner on the
    CPU pays for the page faults of all its tensors again: a third of its time. Costs the peak of memory used.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(parameter, value)


def busy_core_seconds() -> float | None:
    """Core seconds that this machine was busy since it started; None where the system does not say, or says
    it of more cores than this process may use."""
    if cores() < (os.cpu_count() or 1):
        return None
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    # user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time.
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


def memory_gib() -> float:
    """Memory that this process may use: the machine's, capped by its cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_bytes(cgroup_dirs())
    return (total if limit is None else min(total, limit)) / 2**30


def available_gib() -> float:
    """Memory that is free for this process now: the machine's, capped by what its cgroup has left."""
    total = free = memory_gib()
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) / 2**20
    dirs = cgroup_dirs()
    limit = cgroup_memory_bytes(dirs)
    if limit is None:
        return min(total, free)
    used = max((_cgroup_used_bytes(folder) for folder in dirs), default=0)
    return min(total, free, max(0, limit - used) / 2**30)


def _cgroup_used_bytes(folder: Path) -> int:
    """Memory that a cgroup (version 2) uses and the kernel cannot take back: cached files do not count."""
    current = _read(folder / "memory.current")
    cached = 0
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        cached = int(value) if name == "inactive_file" else cached
    return int(current) - cached if current.isdecimal() else 0


def cpu_model() -> str:
    """The processor's name as its maker writes it, or its architecture where that is unknown."""
    if sys.platform == "linux":
        for line in _read(Path("/proc/cpuinfo")).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    elif sys.platform == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
        if name:
            return name
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """The accelerators that PyTorch can use, by name; empty where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return []
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [*names, "Apple MPS"] if torch.backends.mps.is_available() else names


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter, without importing any of them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(path: Path | str) -> tuple[str | None, bool | None]:
    """The commit that ``path`` belongs to, and whether its work tree differs from that commit.

    ``(None, None)`` where git does not answer for ``path``: no git, no repository, or a path that the
    repository ignores, such as this package installed into a virtual environment inside somebody else's
    repository. The commit alone is None before a repository's first one.
    """
    here = Path(path)
    folder = str(here if here.is_dir() else here.parent)
    git = ["git", "-C", folder]
    if _output([*git, "rev-parse", "--is-inside-work-tree"]) != "true":
        return None, None
    if _output([*git, "check-ignore", str(here.resolve())]):
        return None, None
    commit = _output([*git, "rev-parse", "--verify", "--quiet", "HEAD"])
    status = _output([*git, "status", "--porcelain"])
    return commit or None, None if status is None else bool(status)


def cgroup_cores(dirs: list[Path]) -> float | None:
    """The tightest CPU quota over the cgroup directories ``dirs``, in cores; None for no quota."""
    quotas = []
    for folder in dirs:
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2: "150000 100000" or "max ..."
        if not quota:  # version 1, where -1 is no quota
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroup_memory_bytes(dirs: list[Path]) -> int | None:
    """The tightest memory limit over the cgroup directories ``dirs``; None for no limit."""
    texts = [_read(folder / name) for folder in dirs for name in ("memory.max", "memory.limit_in_bytes")]
    return min((int(text) for text in texts if text.isdecimal()), default=None)


def cgroup_dirs(root: Path = _CGROUP_ROOT, listing: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The directories of this process's cgroups and of all that contain them, version 1 or 2.

    Limits hold for every level, so the tightest may be a parent's. Inside a container the path in
    ``listing`` may be the host's and missing here; the mounted root is then the container's own cgroup.
    """
    found = []
    for line in _read(listing).splitlines():
        _, controllers, path = line.split(":", 2)
        names = {controllers, *controllers.split(",")} if controllers else {"."}
        for base in (root / name for name in names):
            folder = base / path.lstrip("/")
            levels = (level for level in (folder, *folder.parents) if level.is_relative_to(base))
            found += [level for level in levels if level.is_dir()]
    return found


def _read(path: Path) -> str:
    """A small system file's text, empty where it cannot be read: the kernel decides which ones exist."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _output(command: list[str]) -> str | None:
    """A command's output, or None where it cannot run or fails."""
    # Inside a git hook these point at the hook's repository instead of the one asked about. Locks are
    # optional so that a look from here never makes the user's own git command fail.
    strip = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    env = {key: value for key, value in os.environ.items() if key not in strip} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
