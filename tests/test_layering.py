"""The arrows between rooms, and proof that an arrow drawn the wrong way is seen."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]

VIOLATIONS = {
    # One planted import for each contract, and for each arrow that is easily drawn by mistake.
    "types -> mario_dist.errors": "Arrows point one way",
    "ops -> mario_dist.nets": "Arrows point one way",
    "nets -> mario_dist.algos": "Arrows point one way",
    "algos -> mario_dist.learner": "Arrows point one way",
    "algos -> mario_dist.env": "Arrows point one way",
    "emulator -> mario_dist.env": "Arrows point one way",
    "env -> mario_dist.rollout": "Arrows point one way",
    "rollout -> mario_dist.learner": "Arrows point one way",
    "rollout -> mario_dist.config": "Arrows point one way",
    "learner -> mario_dist.config": "Arrows point one way",
    "learner -> mario_dist.rollout": "Arrows point one way",
    "store -> mario_dist.registry": "Arrows point one way",
    "evaluation -> mario_dist.system": "Arrows point one way",
    "report -> mario_dist.cli": "Arrows point one way",
    "system -> mario_dist.bench": "Arrows point one way",
    "bench -> mario_dist.cli": "Arrows point one way",
    "learner -> mario_dist.env": "ops, nets, algos and learner use each other",
    "nets -> gymnasium": "The learner's rooms run where there is only PyTorch and NumPy",
    "algos -> pydantic": "The learner's rooms run where there is only PyTorch and NumPy",
    "learner -> cv2": "The learner's rooms run where there is only PyTorch and NumPy",
    "env -> mario_dist.nets": "emulator and env know nothing of learning",
    "replay -> mario_dist.errors": "replay imports types only",
    "config -> mario_dist.rollout": "config imports the configurations of algos, nets and env only",
    "checkpoint -> mario_dist.nets": "records import types, errors, paths and config only",
    "checkpoint -> mario_dist.storage": "Arrows point one way",
    "storage -> mario_dist.system": "Arrows point one way",
    "storage -> mario_dist.learner": "records import types, errors, paths and config only",
    "store -> mario_dist.env": "records import types, errors, paths and config only",
    "registry -> mario_dist.learner": "records import types, errors, paths and config only",
    "evaluation -> mario_dist.learner.planted": "of the learner it takes the device only",
    "rollout -> ray": "Only system imports Ray",
    "bench -> ray": "Only system imports Ray",
    "cli -> sqlalchemy": "Only store imports SQLAlchemy and Alembic",
    "system -> mlflow": "Only registry imports MLflow",
    "cli -> stable_baselines3": "Only the peers import Stable-Baselines3",
}


# The package in the current directory, not the one that is installed here for editing.
LINT_IMPORTS = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "skbc" not in type(finder).__module__]
from importlinter.cli import lint_imports_command
lint_imports_command()
"""


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def planting_site(room: Path) -> Path:
    """A new module of the room, or the room itself where it is one module."""
    return room / "planted.py" if room.is_dir() else room.with_suffix(".py")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What lint-imports says of a copy of the package with every violation in it."""
    copy = tmp_path_factory.mktemp("planted")
    shutil.copytree(ROOT / "mario_dist", copy / "mario_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", copy)
    for violation in VIOLATIONS:
        room, _, imported = violation.partition(" -> ")
        with planting_site(copy / "mario_dist" / room).open("a") as module:
            module.write(f"import {imported}\n")
    attic = copy / "mario_dist" / "attic"
    attic.mkdir()
    (attic / "__init__.py").touch()
    return lint_imports(copy)


def test_the_package_keeps_its_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_planted_violation_is_seen(planted: subprocess.CompletedProcess[str], violation: str) -> None:
    assert planted.returncode == 1
    room, _, imported = violation.partition(" -> ")
    broken = planted.stdout.partition("Broken contracts")[2]
    contract = broken.partition(VIOLATIONS[violation])[2].partition("\n---")[2].partition("\n---")[0]
    importer = f"mario_dist.{room}.planted" if (ROOT / "mario_dist" / room).is_dir() else f"mario_dist.{room}"
    assert f"{importer} -> {imported}" in contract, planted.stdout


def test_a_new_room_must_be_placed(planted: subprocess.CompletedProcess[str]) -> None:
    assert "mario_dist.attic" in planted.stdout


def test_the_learners_rooms_need_only_pytorch_and_numpy() -> None:
    """The contract names libraries that must stay out; this names the only two that may come in."""
    graph = grimp.build_graph("mario_dist", include_external_packages=True, cache_dir=None)
    rooms = ("types", "errors", "machine", "ops", "nets", "algos", "learner")
    tops = [f"mario_dist.{room}" for room in rooms]
    modules = {module for top in tops for module in (top, *graph.find_descendants(top))}
    outside = {
        imported
        for module in modules
        for imported in graph.find_modules_directly_imported_by(module)
        if imported not in modules
    }
    assert outside - sys.stdlib_module_names <= {"torch", "numpy"}
