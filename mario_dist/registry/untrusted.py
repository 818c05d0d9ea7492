"""Whether the MLflow model in a package is one that ``write_model`` could have written, before it is loaded.

MLflow imports whatever loader an ``MLmodel`` names. PyTorch evaluates the shape expressions of an exported
program, calls the functions that its graph names, and writes its names into Python source that it runs. So
what comes from a registry, where others may write too, is held to what our networks need, and anything else
is refused unread. Pickles are MLflow's to refuse.
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
_WORD = re.compile(r"[\w.]*", re.ASCII)
_VERSION = re.compile(r"[\w.+]+", re.ASCII)
_TREE_CONTEXTS = {"null", "[]", None}
_TREE_TYPES = {"builtins.tuple", "builtins.list", "builtins.dict", None}
_MODEL_JSON = "model/models/model.json"
_MAX_JSON_BYTES = 2**24


class Suspicious(Exception):
    """What in a model is not as ours are."""


def copy_checked(directory: Path, to: Path) -> None:
    """What loading the model in ``directory`` needs, into the folder ``to``; without the notes that PyTorch
    keeps of the sources of a graph. Raises ``Suspicious``."""
    try:
        text = (directory / "MLmodel").read_text()
        _check_mlmodel(yaml.safe_load(text))
        (to / "MLmodel").write_text(text)
        (to / "data").mkdir()
        with (
            zipfile.ZipFile(directory / "data/model.pt2") as archive,
            zipfile.ZipFile(to / "data/model.pt2", "w") as copy,
        ):
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise Suspicious("data/model.pt2 has a member twice")
            # PyTorch stores members as they are.
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > (directory / "data/model.pt2").stat().st_size:
                raise Suspicious("data/model.pt2 would unpack to more than it is")
            for name in names:
                if not _MEMBER.fullmatch(name):
                    raise Suspicious(f"data/model.pt2 has a member {name!r}")
                if name == _MODEL_JSON and archive.getinfo(name).file_size > _MAX_JSON_BYTES:
                    raise Suspicious("the graph in data/model.pt2 is huge")
                content = archive.read(name)
                copy.writestr(name, _checked_program(content) if name == _MODEL_JSON else content)
    except Suspicious:
        raise
    except Exception as error:  # a file that is none of its kind fails in many ways
        raise Suspicious(f"cannot read it: {type(error).__name__}: {error}") from error


def _checked_program(content: bytes) -> bytes:
    program = json.loads(content)
    for _, node in _items(program):
        for part in node if isinstance(node, list) else [node]:
            if isinstance(part, dict) and "metadata" in part:
                part["metadata"] = {}
    _check_program(program)
    return json.dumps(program).encode()


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
        if not _WORD.fullmatch(key):
            raise Suspicious(f"the graph in data/model.pt2 has the name {key!r}")
        match key:
            case "target":
                if not _OPERATOR.fullmatch(value):
                    raise Suspicious(f"the graph in data/model.pt2 calls {value!r}")
            case "expr_str":
                if not _SYMBOL.fullmatch(value):
                    raise Suspicious(f"the graph in data/model.pt2 has the shape {value!r}")
            case "as_operator" | "as_custom_obj" | "custom_obj":
                raise Suspicious(f"the graph in data/model.pt2 has {key}")
            case "treespec_namedtuple_fields":
                if value:
                    raise Suspicious("the graph in data/model.pt2 has types of its own")
            case "in_spec" | "out_spec":
                _check_tree(json.loads(value))
            case "torch_version":
                if not _VERSION.fullmatch(value):
                    raise Suspicious(f"data/model.pt2 is of PyTorch {value!r}")
            case _:
                for text in _texts(value):
                    if not _WORD.fullmatch(text):
                        raise Suspicious(f"the graph in data/model.pt2 has the name {text!r}")


def _check_tree(spec: Any) -> None:
    """A description of how a function's arguments are nested."""
    for key, value in _items(spec):
        if key == "type" and value not in _TREE_TYPES:
            raise Suspicious(f"the graph in data/model.pt2 has the type {value!r}")
        if key == "context" and value not in _TREE_CONTEXTS:
            raise Suspicious(f"the graph in data/model.pt2 has the context {value!r}")


def _texts(value: Any) -> Iterator[str]:
    """A string, or those in a list, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


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
