"""Configurations, overrides and command lines from a stranger: understood, or one clear line."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.commands import Result

from mario_dist.config import RunConfig, dump, load, override, parse, to_tree
from mario_dist.emulator.rom import rom_path
from mario_dist.errors import UserError
from mario_dist.paths import check_run_id, new_run_id


def keys(tree: dict[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from keys(value)


# Some of the examples below are large on purpose.
HOSTILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KNOWN = sorted(set(keys(to_tree(RunConfig()))))
NAMES = st.sampled_from(KNOWN) | st.text(max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3).map(lambda n: 10 ** (20 * n) if n > 0 else n)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["ppo", "impala", "apex", "1-1", "auto", "nature", [1, 1], [84, 84], [0.1, 0.2]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
# Real configurations with a few of their values changed: most of what is random is refused at the first key.
CHANGES = st.dictionaries(st.sampled_from(sorted(to_tree(RunConfig()))), VALUES, max_size=2)
GROUPS = {name: group for name, group in to_tree(RunConfig()).items() if isinstance(group, dict)}
INSIDE = st.sampled_from(sorted(GROUPS)).flatmap(
    lambda name: st.dictionaries(st.sampled_from(sorted(GROUPS[name])), VALUES, max_size=2).map(
        lambda changed: {name: changed}
    )
)


def understood_or_one_line(read: Callable[[], RunConfig]) -> None:
    try:
        config = read()
    except UserError:
        return
    tree = to_tree(config)
    assert parse(tree) == config
    assert all(math.isfinite(x) for x in numbers(tree))


def numbers(node: Any) -> Iterator[float]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from numbers(item)
    elif isinstance(node, int | float):
        yield float(node)


@given(st.dictionaries(NAMES, VALUES, max_size=5) | CHANGES | INSIDE)
@example({"seed": 10**30})
@example({"env": {"frame_size": [10**30, 84]}})
@example({"algo": {"lr": [float("nan"), 0.1]}})
@example({"algo": {"gamma": float("inf")}})
@example({"algo": {"name": ["ppo"]}})
@example({"name": "\x1b[2J"})
@HOSTILE
def test_any_tree_is_understood_or_refused(tree: dict[str, Any]) -> None:
    understood_or_one_line(lambda: parse(tree))


@given(st.lists(st.sampled_from(KNOWN) | st.text(max_size=6), max_size=3), st.text(max_size=20))
@example(["seed"], "0x" + "f" * 10_000)
@example(["seed"], "9" * 10_000)
@example(["name"], "2001-99-99")
@example(["env"], "[" * 10_000)
@example(["env", "levels"], "&a [*a]")
@example(["name"], "!!python/object/apply:os.system [touch /tmp/mario-dist-hostile]")
@HOSTILE
def test_any_override_is_understood_or_refused(parts: list[str], value: str) -> None:
    understood_or_one_line(lambda: override({}, [f"{'.'.join(parts)}={value}"]))
    assert not Path("/tmp/mario-dist-hostile").exists()


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"seed: 1\nseed: 2\n? {a: 1}\n: 2\n")
@example(b"base: /etc/passwd\n")
@example(b"base: ../../../../../etc/shadow\n")
@example(b"\xff\xfe\x00")
@example(b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
@example(b"x: &x {y: *x}\n")
@example(b"{" * 5000)
@HOSTILE
def test_any_file_is_understood_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    understood_or_one_line(lambda: load(path))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/proc/self/mem"])
def test_a_file_without_an_end_is_refused(path: str) -> None:
    with pytest.raises(UserError):
        load(Path(path))
    with pytest.raises(UserError):
        rom_path(path)


@given(st.text())
@example("../../etc")
@example("a" * 5000)
@example("\u202e\0/..")
def test_any_name_makes_an_id_that_is_one_folder(name: str) -> None:
    run_id = new_run_id(name)
    check_run_id(run_id)
    assert Path(run_id).name == run_id


@given(st.text())
@example("..")
@example("a/../../b")
@example("latest")
@example("run\n")
def test_an_id_is_one_folder_or_refused(run_id: str) -> None:
    try:
        check_run_id(run_id)
    except UserError:
        return
    assert Path(run_id).name == run_id != ".."
    assert re.fullmatch(r"[\w.-]+", run_id, re.ASCII)


WORDS = st.lists(
    st.text(max_size=12)
    | st.sampled_from(["train", "runs", "show", "eval", "play", "report", "models", "latest", "zoo:1-1"])
    | st.sampled_from(["--json", "--run-id", "--resume", "--init", "--debug", "--help", "--out", "-h", "--"])
    | st.sampled_from(
        ["../..", "/", "\x1b[2J", "a=b", "seed=", "models:/x@y", "models:/../z", "total_steps=0"]
    ),
    max_size=4,
).filter(lambda words: words[:1] not in (["train"], ["play"]) or len(words) > 2)


@given(WORDS)
@settings(HOSTILE, max_examples=150)
def test_any_words_get_an_answer_or_one_line(here: Callable[..., Result], words: list[str]) -> None:
    told = here(*(word for word in words if word != "--debug"))
    assert told.returncode in (0, 1, 2)
    if told.returncode:
        assert told.stderr.count("\n") == 1
        assert "defect" not in told.stderr
        assert "\x1b" not in told.stderr


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    config = parse({"name": "naïve: [a] & 'b' #c"})
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(tmp_path / "c.yaml") == config
