"""What a version of a registered model is made of, and whether it still is what was registered.

A package is an MLflow model that predicts anywhere (``data/model.pt2``, exported by PyTorch for the CPU) and,
beside it, ``checkpoint/``, from which mario-dist plays, and ``replayed.safetensors``: observations and what
the network said of them. ``files.json`` has the SHA-256 of each; its own is a tag of the version.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mario_dist.errors import UserError
from mario_dist.registry.connection import import_mlflow
from mario_dist.registry.untrusted import FILES, Suspicious, copy_checked
from mario_dist.types import F32, U8

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT = "checkpoint"
REPLAYED = "replayed.safetensors"
_FILES = "files.json"
_ADDED_BY_MLFLOW = {"registered_model_meta"}
"""To what it downloads."""
_EXAMPLE_STACKS = 2
"""PyTorch would take a batch of one for a constant."""


class PackageError(UserError):
    """A version that must not be used; the text says why."""


def write_model(directory: Path, scores: "nn.Module", stack_BKHW: U8, actions: Sequence[str]) -> None:
    """Make ``directory`` an MLflow model of ``scores``: uint8 stacks [B, K, H, W] to float32 [B, A].

    stack_BKHW: observations, of which the first become its input example.
    """
    import_mlflow()
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *stack_BKHW.shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(actions)))]),
    )
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # uv's environments have no pip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter, about itself
        mlflow.pytorch.save_model(
            scores,
            directory,
            serialization_format="pt2",
            signature=signature,
            input_example=stack_BKHW[:_EXAMPLE_STACKS],
            # Without them MLflow would find out by loading the model in another process.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
            metadata={"actions": list(actions)},
        )


def seal(directory: Path) -> str:
    """Write down the SHA-256 of every file, and return that of the list."""
    digests = {name: _sha256(directory / name) for name in _names(directory)}
    (directory / _FILES).write_text(json.dumps(digests, indent=1))
    return _sha256(directory / _FILES)


def check_files(directory: Path, seal_sha256: str) -> None:
    """Raises ``PackageError`` where a file is not what ``seal`` saw, is missing or is new."""
    listing = directory / _FILES
    if not listing.is_file() or _sha256(listing) != seal_sha256:
        raise PackageError(f"{_FILES} is not what was registered")
    try:
        digests: Any = json.loads(listing.read_bytes())
    except ValueError:
        digests = None
    if not isinstance(digests, dict) or digests.keys() != FILES:
        raise PackageError(f"{_FILES} does not list what a version has")
    found = set(_names(directory)) - {_FILES}
    if missing := sorted(FILES - found):
        raise PackageError(f"{missing[0]} is missing")
    if new := sorted(found - FILES):
        raise PackageError(f"{new[0]} was not there when it was registered")
    for name, digest in digests.items():
        if _sha256(directory / name) != digest:
            raise PackageError(f"{name} is not what was registered")


def load_model(directory: Path) -> Callable[[U8], F32]:
    """The MLflow model in a package, on the CPU.

    Raises ``PackageError`` where it is broken, pickled, or not such as ``write_model`` writes.
    """
    import_mlflow()
    import mlflow.pyfunc

    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy_checked(directory, Path(folder))
            model = mlflow.pyfunc.load_model(folder, model_config={"device": "cpu"})
    except Suspicious as error:
        raise PackageError(f"its MLflow model was not written by mario-dist: {_line(error)}") from error
    except Exception as error:  # MLflow, PyTorch and YAML each raise their own
        raise PackageError(f"its MLflow model cannot be loaded: {_line(error)}") from error

    def predict(stack_BKHW: U8) -> F32:
        try:
            return np.asarray(model.predict(stack_BKHW), dtype=np.float32)
        except Exception as error:  # as above
            raise PackageError(f"its MLflow model cannot predict: {_line(error)}") from error

    return predict


def _names(directory: Path) -> list[str]:
    paths = (path for path in sorted(directory.rglob("*")) if not path.is_dir())
    return [str(path.relative_to(directory)) for path in paths if path.name not in _ADDED_BY_MLFLOW]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
