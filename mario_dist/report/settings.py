"""Configurations as dotted keys, and where several differ."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "-"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"algo": {"gamma": 0.9}}`` as ``{"algo.gamma": "0.9"}``, in the tree's order.

    Lists are joined by commas; null and an empty text are shown as such.
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _shown(value)
    return flat


def differing(flats: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values are not the same in all, missing ones included, in order of first appearance."""
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if len({flat.get(key, MISSING) for flat in flats}) > 1]


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value) if value != "" else '""'
