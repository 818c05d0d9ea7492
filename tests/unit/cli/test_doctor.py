"""What ``mario-dist doctor`` finds, on this machine and on broken ones."""

import io
import json
import sqlite3
import sys
from importlib import metadata
from pathlib import Path

import gym_super_mario_bros._roms
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from mario_dist.cli import doctor_checks
from mario_dist.cli.doctor import Check, checks, doctor
from mario_dist.cli.doctor import _show as show

NAMES = (
    "python",
    "packages",
    "rom",
    "emulator",
    "device",
    "cores and memory",
    "shared memory",
    "run directory",
    "run store",
    "mlflow",
    "video codec",
    "display",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and the databases that are under it by default."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MARIO_DIST_DB", "MARIO_DIST_RUNS", "MLFLOW_TRACKING_URI", "DISPLAY"):
        monkeypatch.delenv(variable, raising=False)


def find(name: str) -> Check:
    return next(check for check in checks() if check.name == name)


def run_doctor(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout


def test_a_machine_that_passes_these_tests_is_healthy(tmp_path: Path) -> None:
    found = checks()
    assert tuple(check.name for check in found) == NAMES
    assert [check for check in found if check.required and not check.ok] == []
    assert all(check.detail for check in found)
    assert all(check.fix == "" for check in found if check.ok)
    assert not list(tmp_path.iterdir()), "a look leaves nothing behind"


def test_json_is_one_document_on_standard_output() -> None:
    code, text = run_doctor("--json")
    document = json.loads(text)
    assert code == 0
    assert document["ok"] is True
    assert [check["name"] for check in document["checks"]] == list(NAMES)
    assert all(set(check) == {"name", "ok", "detail", "fix", "required"} for check in document["checks"])


def test_a_required_failure_is_exit_code_1_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARIO_DIST_DB", "postgresql://user:s3cret@127.0.0.1:1/runs")
    code, text = run_doctor("--json")
    document = json.loads(text)
    store = next(check for check in document["checks"] if check["name"] == "run store")
    assert code == 1
    assert document["ok"] is False
    assert store["fix"] == "unset MARIO_DIST_DB"
    assert "s3cret" not in text

    code, text = run_doctor()
    assert code == 1
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if "run store" in line)
    assert line.startswith("FAIL")
    assert line.endswith("fix: unset MARIO_DIST_DB")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_an_optional_failure_is_a_note_only() -> None:
    code, text = run_doctor()
    assert code == 0
    line = next(line for line in text.splitlines() if "display" in line)
    assert line.startswith("note")
    assert line.endswith("fix: mario-dist play TARGET --out clip.mp4")


def test_an_existing_run_store_is_opened(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with sqlite3.connect(tmp_path / "runs" / "mario.db"):
        pass
    check = find("run store")
    assert check.ok
    assert check.detail == str(Path("runs/mario.db"))


def test_a_file_that_is_no_database_is_found(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mario.db").write_text("not a database, but long enough to look at " * 10)
    check = find("run store")
    assert not check.ok
    assert "not a database" in check.detail
    assert check.fix == "mv runs/mario.db runs/mario.db.broken"


def test_an_mlflow_server_that_is_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    check = find("mlflow")
    assert not check.ok
    assert "127.0.0.1:1" in check.detail
    assert "\n" not in check.detail
    assert check.fix == "unset MLFLOW_TRACKING_URI"


def test_a_run_directory_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the directory should be")
    check = find("run directory")
    assert not check.ok
    assert str(tmp_path / "runs") in check.detail


@pytest.mark.parametrize(
    ("content", "detail"), [(b"NES\x1a", "4 bytes, not 40976"), (bytes(40_976), "another ROM")]
)
def test_another_rom_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, detail: str
) -> None:
    (tmp_path / "smb.nes").write_bytes(content)
    monkeypatch.setattr(gym_super_mario_bros._roms, "smb1_rom_path", lambda: str(tmp_path / "smb.nes"))
    check = find("rom")
    assert not check.ok
    assert detail in check.detail
    assert check.fix.startswith("uv pip install --reinstall gym-super-mario-bros==9.1")


def test_missing_and_outdated_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["no-such-package>=2", "rich<1", "pyyaml>=6", "pytest>=999; extra == 'other'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    check = find("packages")
    assert not check.ok
    assert check.detail.startswith("no-such-package is not installed; rich is ")
    assert check.detail.endswith(", wanted <1")
    assert check.fix == "uv sync"


def test_a_wheel_is_mended_by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "__file__", "/site-packages/mario_dist/cli/doctor_checks.py")
    monkeypatch.setattr(metadata, "requires", lambda name: ["rich<1"])
    assert find("packages").fix == f"{sys.executable} -m pip install 'rich<1'"


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mario_dist.emulator", None)
    check = find("emulator")
    assert not check.ok
    assert check.detail.startswith("ModuleNotFoundError: ")
    assert check.fix == "uv sync"


def test_a_table_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    found = [
        Check("rom", True, "as expected"),
        Check("store", False, "cannot use [runs]", "unset [X]"),
        Check("display", False, "none", "use a file", required=False),
    ]
    file = Terminal()
    show(found, Console(file=file, width=100, color_system=None))
    header, rom, store, display = file.getvalue().splitlines()
    assert header.split() == ["check", "found", "what", "mends", "it"]
    assert rom.split() == ["ok", "rom", "as", "expected"]
    assert store.split() == ["FAIL", "store", "cannot", "use", "[runs]", "unset", "[X]"]
    assert display.split() == ["note", "display", "none", "use", "a", "file"]
