"""What ``mario-dist doctor`` looks at: one function for each finding."""

import hashlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mario_dist import machine
from mario_dist.errors import UserError
from mario_dist.paths import runs_dir

SHARED_MEMORY = Path("/dev/shm")
ROM_BYTES = 40_976
ROM_SHA256 = "ec299b990e8bfee8ba46e3f61d63b2e1ae5b8a2e431de84e2e4bbd692dc53586"

_MIN_MEMORY_GIB = 4.0
_MIN_SHARED_GIB = 2.0
_EMULATED_FRAMES = 120
_MODULES = {"opencv-python": "cv2", "psycopg2-binary": "psycopg2", "pyyaml": "yaml"}
"""Modules that are not named as their distribution is."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix`` is the command that mends it, or nothing; training works without what is not
    required."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


def reinstall(requirement: str = "") -> str:
    """The command that installs what is missing: into a source tree's environment, or into this one."""
    if (Path(__file__).parents[2] / "pyproject.toml").exists():
        return "uv sync"
    return f"{sys.executable} -m pip install {requirement or '--force-reinstall mario-dist'}"


def _python(name: str) -> Check:
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("mario-dist")["Requires-Python"]
    version = platform.python_version()
    return Check(
        name, version in SpecifierSet(wanted), f"{version}, wanted {wanted}", "uv python install 3.13"
    )


def _packages(name: str) -> Check:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("mario-dist") or ()]
    # An extra's requirements are for those who asked for the extra.
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    problems, unmet = [], []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
            _import(_MODULES.get(requirement.name, requirement.name.replace("-", "_")))
        except metadata.PackageNotFoundError:
            problem = f"{requirement.name} is not installed"
        except Exception as error:  # a broken binary raises what it likes
            problem = f"{requirement.name} does not import ({' '.join(str(error).split())})"
        else:
            if requirement.specifier.contains(version, prereleases=True):
                continue
            problem = f"{requirement.name} is {version}, wanted {requirement.specifier}"
        problems.append(problem)
        unmet.append(f"'{requirement}'")
    detail = "; ".join(problems) or f"{len(wanted)} packages import and are in their ranges"
    return Check(name, not problems, detail, reinstall(" ".join(unmet)))


def _import(module: str) -> None:
    if module == "mlflow":
        from mario_dist.registry.connection import import_mlflow

        import_mlflow()  # plainly imported, it would send telemetry
    else:
        importlib.import_module(module)


def _rom(name: str) -> Check:
    from gym_super_mario_bros._roms import smb1_rom_path

    path = Path(smb1_rom_path())
    content = path.read_bytes()
    if len(content) != ROM_BYTES:
        detail = f"{path} has {len(content)} bytes, not {ROM_BYTES}"
    elif (digest := hashlib.sha256(content).hexdigest()) != ROM_SHA256:
        detail = f"{path} is another ROM (SHA-256 {digest[:12]}...)"
    else:
        return Check(name, True, f"{path.name}, {ROM_BYTES} bytes, SHA-256 as expected")
    version = metadata.version("gym-super-mario-bros")
    return Check(name, False, detail, f"uv pip install --reinstall gym-super-mario-bros=={version}")


def _emulator(name: str) -> Check:
    from mario_dist.emulator import build_native, make_emulator, native_problem, resolve_backend

    emulator = make_emulator("auto")
    try:
        start = time.perf_counter()
        for _ in range(_EMULATED_FRAMES):
            emulator.step(0)
        rate = _EMULATED_FRAMES / (time.perf_counter() - start)
        # The title screen; one colour all over would be an emulator that stepped without running.
        picture = emulator.rgb()
    finally:
        emulator.close()
    detail = f"{resolve_backend('auto')}, {rate:.0f} frames/s on one core"
    if not picture.min() < picture.max():
        return Check(name, False, f"{detail}, but the picture is empty", reinstall())
    if native_problem():
        return Check(name, False, f"{detail}; the native core was not built", build_native(), required=False)
    return Check(name, True, detail)


def _device(name: str) -> Check:
    import torch

    from mario_dist.learner.device import choose_device

    device = choose_device("auto")
    total = torch.ones(8, device=device).sum().item()
    detail = f"{device.type}: {', '.join(machine.gpus()) or machine.cpu_model()}, PyTorch {torch.__version__}"
    if device.type == "cpu" and Path("/proc/driver/nvidia/version").exists():
        detail = f"PyTorch {torch.__version__} does not see this machine's NVIDIA GPU"
        return Check(name, False, detail, reinstall("--force-reinstall torch"), required=False)
    return Check(name, total == 8, detail, reinstall())


def _cores_and_memory(name: str) -> Check:
    cores, memory_gib = machine.cores(), machine.memory_gib()
    detail = f"{cores} cores, {memory_gib:.1f} GiB for this process"
    if memory_gib >= _MIN_MEMORY_GIB:
        return Check(name, True, detail, required=False)
    return Check(name, False, f"{detail}; little memory", "mario-dist train rollout.lanes=8", required=False)


def _shared_memory(name: str) -> Check:
    if not SHARED_MEMORY.is_dir():
        return Check(name, True, f"Ray does not use {SHARED_MEMORY} on {platform.system()}", required=False)
    free_gib = shutil.disk_usage(SHARED_MEMORY).free / 2**30
    detail = f"{free_gib:.1f} GiB free in {SHARED_MEMORY}"
    if free_gib >= _MIN_SHARED_GIB:
        return Check(name, True, detail, required=False)
    fix = f"mount -o remount,size=4G {SHARED_MEMORY} (a container: docker run --shm-size=4g)"
    return Check(
        name, False, f"{detail}; Ray's object store wants {_MIN_SHARED_GIB:.0f}", fix, required=False
    )


def _run_directory(name: str) -> Check:
    where = runs_dir().absolute()
    folder = _existing(where)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = f"chmod u+rwx {folder}"
        return Check(name, False, f"cannot write to {where}: {error.strerror}", fix)
    free_gib = shutil.disk_usage(folder).free / 2**30
    return Check(name, True, f"{where}, {free_gib:.0f} GiB free")


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _run_store(name: str) -> Check:
    from mario_dist.store import RunStore, default_url

    url = default_url()
    if (file := _new_file(url)) is not None:
        return Check(name, True, f"{file} (made by the first run)")
    try:
        with RunStore(url, busy_timeout_s=5.0) as store:
            return Check(name, True, store.where)
    except UserError as error:
        return Check(name, False, str(error), _elsewhere("MARIO_DIST_DB", "runs/mario.db"))


def _tracking(name: str) -> Check:
    from mario_dist.registry import Tracker, default_tracking_uri
    from mario_dist.registry.connection import redact

    uri = default_tracking_uri()
    if (file := _new_file(uri)) is not None:
        return Check(name, True, f"{file} (made by the first run)")
    try:
        Tracker(uri)
    except UserError as error:
        return Check(name, False, str(error), _elsewhere("MLFLOW_TRACKING_URI", "runs/mlflow.db"))
    return Check(name, True, redact(uri))


def _elsewhere(variable: str, default: str) -> str:
    """Back to the default file where the environment named another database, else to a new such file."""
    return f"unset {variable}" if os.environ.get(variable) else f"mv {default} {default}.broken"


def _new_file(url: str) -> Path | None:
    """The SQLite file of ``url`` where it can be made but is not there yet: a look makes no files."""
    scheme, _, path = url.partition(":///")
    file = Path(path)
    if scheme != "sqlite" or not path or file.exists() or not os.access(_existing(file.parent), os.W_OK):
        return None
    return file


def _video(name: str) -> Check:
    from mario_dist.report.video import video_codec

    fix = reinstall("--force-reinstall av")
    try:
        codec = video_codec()
    except UserError as error:
        return Check(name, False, str(error), fix, required=False)
    if codec != "mpeg4":
        return Check(name, True, f"H.264 by {codec}", required=False)
    return Check(name, False, "no H.264: clips will be MPEG-4", fix, required=False)


def _display(name: str) -> Check:
    from mario_dist.report.video import has_display

    if has_display():
        return Check(name, True, "play can open a window", required=False)
    return Check(
        name, False, "none: play writes a file", "mario-dist play TARGET --out clip.mp4", required=False
    )


CHECKS: dict[str, Callable[[str], Check]] = {
    "python": _python,
    "packages": _packages,
    "rom": _rom,
    "emulator": _emulator,
    "device": _device,
    "cores and memory": _cores_and_memory,
    "shared memory": _shared_memory,
    "run directory": _run_directory,
    "run store": _run_store,
    "mlflow": _tracking,
    "video codec": _video,
    "display": _display,
}
