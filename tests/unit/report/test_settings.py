"""Configurations as tables."""

from collections.abc import Callable

from mario_dist.config import RunConfig, to_tree
from mario_dist.report.settings import differing, flatten


def test_flatten_names_values_by_their_path() -> None:
    tree = {"a": {"b": {"c": 1}, "d": [1, 0.5]}, "e": None, "f": True, "g": "", "h": {}}
    expected = {"a.b.c": "1", "a.d": "1, 0.5", "e": "none", "f": "true", "g": '""', "h": "none"}
    assert flatten(tree) == expected


def test_only_what_differs_is_named_and_missing_is_a_difference() -> None:
    one, two = {"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}
    assert differing([one, two]) == ["b", "c"]
    assert differing([one]) == differing([one, one]) == differing([]) == []


def test_the_whole_configuration_is_flat(probe_config: Callable[..., RunConfig]) -> None:
    flats = [flatten(to_tree(probe_config(seed=seed, algo={"gamma": 0.5}))) for seed in (1, 2)]
    assert flats[0]["algo.gamma"] == "0.5"
    assert flats[0]["env.levels"] == "1-1"
    assert differing(flats) == ["seed"]
