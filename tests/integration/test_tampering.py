"""Versions that are not what was registered, or were registered to do harm: refused, and nothing runs."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from support.answers import answer, ok, refused
from support.commands import Result
from support.servers import MLflowServer

from mario_dist.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mario_dist.registry import ModelRegistry

Here = Callable[..., Result]


def pickled(package: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), package / "data/model.pt2")


def another_checkpoint(package: Path) -> None:
    state = load_checkpoint(package / "checkpoint")
    arrays = {name: array[::-1].copy() for name, array in state.arrays.items()}
    shutil.rmtree(package / "checkpoint")
    saved = save_checkpoint(package / "elsewhere", 1, TrainState(arrays, state.meta))
    saved.rename(package / "checkpoint")
    (package / "elsewhere").rmdir()


def another_model(package: Path) -> None:
    from mario_dist.registry import write_model

    class Other(torch.nn.Module):
        def forward(self, stack: torch.Tensor) -> torch.Tensor:
            return stack.float().mean((1, 2, 3))[:, None] + torch.arange(7.0)

    made = package.parent / "made"
    write_model(made, Other(), load_file(package / "replayed.safetensors")["stack"], ["x"] * 7)
    (made / "data/model.pt2").replace(package / "data/model.pt2")
    shutil.rmtree(made)


PROOF = Path(tempfile.gettempdir()) / "mario-dist-was-here"
"""What code that came in a package would make."""


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {PROOF}",)


def rewrite(package: Path, member: str, change: Callable[[bytes], bytes]) -> None:
    """Another content for a member of the exported program."""
    path, changed = package / "data/model.pt2", package / "changed"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        assert member in old.namelist()
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == member else old.read(name))
    changed.replace(path)


def bomb(package: Path) -> None:
    """A weight of zeros that is a thousandth of itself in the archive."""
    path = package / "data/model.pt2"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_99", bytes(2**26))


def pickle_inside(package: Path) -> None:
    rewrite(package, "model/data/sample_inputs/model.pt", lambda _: pickle.dumps(Payload()))


def in_the_graph(old: str, new: str) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        def change(content: bytes) -> bytes:
            program = json.loads(content)
            text = json.dumps(program).replace(old, new)
            assert text != json.dumps(program)
            return text.encode()

        rewrite(package, "model/models/model.json", change)

    return damage


def guards(package: Path) -> None:
    def change(content: bytes) -> bytes:
        code = f"__import__('os').system('touch {PROOF}')"
        return json.dumps({**json.loads(content), "guards_code": [code]}).encode()

    rewrite(package, "model/models/model.json", change)


def own_loader(package: Path) -> None:
    (package / "conda.yaml").write_text(f"open({str(PROOF)!r}, 'w')")
    model = yaml.safe_load((package / "MLmodel").read_text())
    function = model["flavors"]["python_function"]
    function |= {"loader_module": "mlflow.pyfunc.model", "model_code_path": "conda.yaml"}
    (package / "MLmodel").write_text(yaml.safe_dump(model))


def own_code(package: Path) -> None:
    model = yaml.safe_load((package / "MLmodel").read_text())
    model["flavors"]["pytorch"]["code"] = "data"
    (package / "MLmodel").write_text(yaml.safe_dump(model))


def meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another meta.json, with a manifest that fits."""

    def damage(package: Path) -> None:
        state = load_checkpoint(package / "checkpoint")
        tree = json.loads(json.dumps(state.meta))
        change(tree)
        shutil.rmtree(package / "checkpoint")
        save_checkpoint(package / "elsewhere", 1, TrainState(state.arrays, tree)).rename(
            package / "checkpoint"
        )
        (package / "elsewhere").rmdir()

    return damage


def other_scores(package: Path) -> None:
    replayed = load_file(package / "replayed.safetensors")
    save_file({**replayed, "scores": replayed["scores"] + 1}, package / "replayed.safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def seal_again(package: Path, server: MLflowServer, model: str) -> None:
    """As an attacker who may also write MLflow's database."""
    from mlflow import MlflowClient

    digests = {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name != "files.json"
    }
    (package / "files.json").write_text(json.dumps(digests))
    sealed = hashlib.sha256((package / "files.json").read_bytes()).hexdigest()
    MlflowClient(server.url, registry_uri=server.url).set_model_version_tag(
        model, "1", "mario_dist.files_sha256", sealed
    )


@pytest.mark.parametrize(
    ("damage", "resealed", "says"),
    [
        (
            lambda p: flip(p / "checkpoint/arrays.safetensors"),
            False,
            "arrays.safetensors is not what was reg",
        ),
        (lambda p: flip(p / "data/model.pt2"), False, "model.pt2 is not what was registered"),
        (lambda p: flip(p / "files.json"), False, "files.json is not what was registered"),
        (lambda p: (p / "requirements.txt").unlink(), False, "requirements.txt is missing"),
        (lambda p: (p / "extra.pkl").write_bytes(b"x"), False, "extra.pkl was not there when"),
        (pickled, False, "model.pt2 is not what was registered"),
        (pickled, True, "its MLflow model was not written by mario-dist: data/model.pt2 has a member"),
        (bomb, True, "data/model.pt2 would unpack to more than it is"),
        (pickle_inside, True, "its MLflow model cannot be loaded: Deserializing model using pickle is disal"),
        (own_loader, True, "MLmodel says python_function.loader_module: 'mlflow.pyfunc.model'"),
        (own_code, True, "MLmodel says pytorch.code: 'data'"),
        (
            in_the_graph("Symbol('s", f"__import__('os').system('touch {PROOF}') or Symbol('s"),
            True,
            'the graph in data/model.pt2 has the shape "__import__',
        ),
        (
            in_the_graph("torch.ops.aten.relu.default", "torch.hub.load"),
            True,
            "the graph in data/model.pt2 calls 'torch.hub.load'",
        ),
        (guards, True, "data/model.pt2 has guards, which are code"),
        (
            in_the_graph('"stack_bkhw"', f"\"stack_bkhw=__import__('os').system('touch {PROOF}')\""),
            True,
            "the graph in data/model.pt2 has the name",
        ),
        (meta(lambda m: m.update(counters=None)), True, "cannot read it"),
        (
            meta(lambda m: m["config"]["network"].update(hidden=10**7)),
            True,
            "does not fit this configuration",
        ),
        (meta(lambda m: m["config"]["env"].update(levels=["1-2"])), True, "it plays as mario-1-2-ppo, which"),
        (another_checkpoint, True, "its checkpoint is another network than the one that was registered"),
        (another_model, True, "its MLflow model is another network than the one that was registered"),
        (other_scores, True, "its checkpoint is another network"),
    ],
)
def test_a_version_that_was_tampered_with_is_refused(
    damage: Callable[[Path], object],
    resealed: bool,
    says: str,
    model: str,
    here: Here,
    server: MLflowServer,
    registry: ModelRegistry,
    tmp_path: Path,
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=1"))
    (package,) = (path.parent for path in server.artifacts.rglob("files.json"))
    damage(package)
    if resealed:
        seal_again(package, server, model)
    said = refused(here("models", "promote", model, "1", "--force", "--reason", "try it", "episodes=1"))
    assert f"models:/{model}/1 must not be used: " in said
    assert says in said
    registry.move(model, "champion", 1)  # anyone can
    (row,) = answer(here("models", "watch", model, "--once", "--json"))
    assert row["verdict"] == "failed"
    assert says in row["reason"]
    assert not PROOF.exists()
    if not resealed:
        assert says in refused(here("play", f"models:/{model}@champion", "--out", str(tmp_path / "clip.mp4")))


def test_a_copy_that_was_damaged_on_this_machine_is_fetched_anew(
    model: str, here: Here, own_runs: Path
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=1"))
    judge = ("eval", f"models:/{model}/1", "--episodes", "1", "--no-log")
    ok(here(*judge))
    (kept,) = own_runs.rglob("models/*/*/checkpoint/arrays.safetensors")
    whole = kept.read_bytes()
    flip(kept)
    ok(here(*judge))
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("tag", ["/../../..", "", "0" * 63])
def test_a_seal_that_is_none_leads_nowhere(
    tag: str, model: str, here: Here, server: MLflowServer, own_runs: Path
) -> None:
    from mlflow import MlflowClient

    ok(here("models", "register", "zoo:1-1", "episodes=1"))
    kept = own_runs / "kept"
    own_runs.mkdir(exist_ok=True)
    kept.write_text("mine")
    MlflowClient(server.url, registry_uri=server.url).set_model_version_tag(
        model, "1", "mario_dist.files_sha256", tag
    )
    for _ in range(2):
        assert "was not registered by mario-dist" in refused(here("eval", f"models:/{model}/1"))
    assert kept.read_text() == "mine"
