"""The install: with a compiler the native core is there, without one everything else still is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mario_dist.emulator import native_problem, resolve_backend

ROOT = Path(__file__).parents[2]
# Packages from the folder in argv alone: -S leaves out those that are installed, and their .pth files.
ONLY_FROM = """
import sys
sys.path.append(sys.argv.pop(1))
from mario_dist.cli.main import main
main()
"""


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="there is no C++ compiler")
def test_where_there_is_a_compiler_the_core_was_built() -> None:
    assert native_problem() is None
    assert resolve_backend("auto") == resolve_backend("native") == "native"


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel that was built where no C++ compiler works, unpacked, and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1])",
            str(folder),
        ],
        cwd=ROOT,
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        place = folder / "package" / installed.name
        if not place.exists():
            place.symlink_to(installed)
    return folder / "package"


def run(package: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", ONLY_FROM, str(package), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_without_a_compiler_the_package_is_whole_but_for_the_core(without_compiler: Path) -> None:
    package = without_compiler / "mario_dist"
    names = {str(path.relative_to(package)) for path in package.rglob("*")}
    assert "emulator/nes_py.py" in names
    assert "configs/ppo-1-1.yaml" in names
    assert not [name for name in names if name.endswith((".so", ".cpp", ".hpp"))]


def test_without_the_core_training_says_so_in_one_line_and_runs(
    without_compiler: Path, tmp_path: Path
) -> None:
    tiny = ["total_steps=64", "rollout.lanes=2", "rollout.unroll_length=16", "evaluation.every_steps=0"]
    done = run(without_compiler, "train", "configs/smoke.yaml", *tiny, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "nes-py" in line]
    assert "uv sync --reinstall-package mario-dist" in line


def test_without_the_core_doctor_names_the_command_that_builds_it(
    without_compiler: Path, tmp_path: Path
) -> None:
    done = run(without_compiler, "doctor", cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if "nes-py" in line and "frames/s" in line]
    assert "uv sync --reinstall-package mario-dist" in done.stdout
    assert "was not built" in line


def test_asking_for_the_missing_core_is_one_clear_line(without_compiler: Path, tmp_path: Path) -> None:
    done = run(without_compiler, "train", "env.emulator=native", cwd=tmp_path)
    assert done.returncode == 1
    assert "not built" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("*/config.yaml"))
