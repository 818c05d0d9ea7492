"""The core under sanitisers, on random cartridges and joypads, damaged states and files: fuzz.cpp."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mario_dist.emulator.rom import rom_path

CORE = Path(__file__).parents[3] / "mario_dist" / "emulator" / "core"
SOURCES = [*(CORE / f"{name}.cpp" for name in ("rom", "cpu", "ppu", "picture", "lanes"))]
SOURCES.append(Path(__file__).with_name("fuzz.cpp"))
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="there is no C++ compiler")


def build(folder: Path, *sanitisers: str) -> Path:
    flags = ["-std=c++17", "-g", "-O1", "-pthread", f"-I{CORE}", *sanitisers]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    compiling = [
        subprocess.Popen([*COMPILER, *flags, "-c", source, "-o", made])
        for source, made in zip(SOURCES, objects, strict=True)
    ]
    assert [process.wait(timeout=200) for process in compiling] == [0] * len(SOURCES)
    subprocess.run([*COMPILER, *flags, *objects, "-o", folder / "fuzz"], check=True, timeout=100)
    return folder / "fuzz"


def fuzz(program: Path, what: str, seed: int) -> subprocess.CompletedProcess[str]:
    command = [program, what, rom_path(), str(seed)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_nothing_it_is_given_leads_it_astray(tmp_path: Path) -> None:
    """No access out of bounds, no undefined behaviour, no leak; what is damaged is refused or harmless."""
    program = build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = fuzz(program, "all", seed=1)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "fuzz: done\n")


def test_threads_do_not_race(tmp_path: Path) -> None:
    done = fuzz(build(tmp_path, "-fsanitize=thread"), "lanes", seed=1)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "fuzz: done\n")
