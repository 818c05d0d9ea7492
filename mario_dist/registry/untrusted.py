"""Whether the MLflow model in a package is one that ``write_model`` could have written, before it is loaded.

MLflow imports whatever loader an ``MLmodel`` names, and PyTorch evaluates the shape expressions of an exported
program and calls the functions that its graph names. So what comes from a registry, where others may write
too, is held to what our networks need, and anything else is refused unread. Pickles are MLflow's to refuse.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FILES = frozenset(
    {
        "MLmodel",
        "checkpoint/arrays.safetensors",
        "checkpoint/manifest.json",
        "checkpoint/meta.json",
        "conda.yaml",
        "data/model.pt2",
        "input_example.json",
        "python_env.yaml",
        "replayed.safetensors",
        "requirements.txt",
        "serving_input_example.json",
    }
)
"""Of every package, beside the list of them."""

_FLAVORS: dict[str, dict[str, Any]] = {
    "python_function": {
        "loader_module": "mlflow.pytorch",
        "pickle_module_name": "mlflow.pytorch.pickle_module",
        "data": "data",
        "code": None,
    },
    "pytorch": {"model_data": "data", "code": None},
}
_FREE = {
    "python_function": {"config", "env", "python_version"},
    "pytorch": {"pytorch_version"},
}
"""Keys of flavors that say what the model was made with, and that loading it does not act upon."""

_MEMBER = re.compile(
    r"model/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/model_constants_config\.json"
    r"|data/sample_inputs/model\.pt)"
)
_OPERATOR = re.compile(r"torch\.ops\.(aten\.\w+\.\w+|higher_order\.wrap_with_autocast)")
_SYMBOL = re.compile(r"-?\d+|[su]\d+|Symbol\('[su]\d+'(, (positive|integer)=True)*\)")
_TREE_TYPES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
_MODEL_JSON = "model/models/model.json"
_MAX_JSON_BYTES = 2**24


class Suspicious(Exception):
    """What in a model is not as ours are."""


def check_model(directory: Path) -> None:
    """Raises ``Suspicious``."""
    try:
        _check_mlmodel(yaml.safe_load((directory / "MLmodel").read_text()))
        with zipfile.ZipFile(directory / "data/model.pt2") as archive:
            for name in archive.namelist():
                if not _MEMBER.fullmatch(name):
                    raise Suspicious(f"data/model.pt2 has a member {name!r}")
            if archive.getinfo(_MODEL_JSON).file_size > _MAX_JSON_BYTES:
                raise Suspicious("the graph in data/model.pt2 is huge")
            _check_program(json.loads(archive.read(_MODEL_JSON)))
    except Suspicious:
        raise
    except Exception as error:  # a file that is none of its kind fails in many ways
        raise Suspicious(f"cannot read it: {type(error).__name__}: {error}") from error


def _check_mlmodel(model: Any) -> None:
    flavors = model["flavors"]
    if flavors.keys() != _FLAVORS.keys():
        raise Suspicious(f"MLmodel has the flavors {', '.join(map(str, flavors))}")
    for name, flavor in flavors.items():
        for key, value in flavor.items():
            if key not in _FREE[name] and (key not in _FLAVORS[name] or value != _FLAVORS[name][key]):
                raise Suspicious(f"MLmodel says {name}.{key}: {value!r}")


def _check_program(program: Any) -> None:
    if program["guards_code"]:
        raise Suspicious("data/model.pt2 has guards, which are code")
    for key, value in _items(program):
        match key:
            case "target" if not _OPERATOR.fullmatch(value):
                raise Suspicious(f"the graph in data/model.pt2 calls {value!r}")
            case "expr_str" if not _SYMBOL.fullmatch(value):
                raise Suspicious(f"the graph in data/model.pt2 has the shape {value!r}")
            case "as_operator" | "as_custom_obj" | "custom_obj":
                raise Suspicious(f"the graph in data/model.pt2 has {key}")
            case "treespec_namedtuple_fields" if value:
                raise Suspicious("the graph in data/model.pt2 has types of its own")
            case "in_spec" | "out_spec":
                for inner, type_name in _items(json.loads(value)):
                    if inner == "type" and type_name not in _TREE_TYPES:
                        raise Suspicious(f"the graph in data/model.pt2 has the type {type_name!r}")
            case _:
                pass


def _items(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON tree with its value, however deep."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield from node.items()
            left += node.values()
        elif isinstance(node, list):
            left += node
