"""Configuration: read, refused with one helpful line, written back."""

from pathlib import Path

import pytest

from mario_dist.algos.apex import ApexConfig
from mario_dist.algos.ppo import PPOConfig
from mario_dist.config import RunConfig, dump, load, override, parse
from mario_dist.errors import UserError

REPO = Path(__file__).parents[2]
RUNS = [path for path in sorted((REPO / "configs").rglob("*.yaml")) if path.parent.name != "gates"]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_every_config_of_the_repository_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(config))
    assert load(copy) == config


def test_the_configs_show_every_reward_preset() -> None:
    rewards = {load(path).env.reward for path in RUNS}
    assert rewards == {"native", "progress", "landed", "shaped", "clipped"}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"algo": {"gama": 0.1}}, "unknown key algo.gama; did you mean gamma?"),
        ({"envv": {}}, "unknown key envv; did you mean env?"),
        ({"env": {"xyzzy": 1}}, "unknown key env.xyzzy; valid keys: kind, levels"),
        ({"env": {"levels": ["9-9"]}}, "there is no level '9-9'; levels are 1-1 to 8-4"),
        ({"env": {"levels": []}}, "levels is empty"),
        ({"env": {"actions": "SIMPEL"}}, "there is no action set 'SIMPEL'; presets are RIGHT_ONLY"),
        ({"env": {"actions": [["jump"]]}}, "there is no button 'jump'"),
        ({"env": {"reward": "best"}}, "env.reward: input should be 'native', 'progress'"),
        ({"seed": "x"}, "seed: input should be a valid integer"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"algo": {"gamma": 1.5}}, "gamma and gae_lambda must be in [0, 1]"),
        ({"algo": {"name": "apex", "gama": 0.1}}, "unknown key algo.gama; did you mean gamma?"),
        ({"algo": {"name": "apex", "epochs": 4}}, "unknown key algo.epochs; valid keys: name, gamma, n_step"),
        ({"algo": {"name": "apex", "batch": "x"}}, "algo.batch: input should be a valid integer"),
        (
            {"algo": {"name": "a3c"}},
            "algo.name: there is no such algorithm; algorithms are ppo, impala, apex",
        ),
        ({"replay": {"capacity": 10}}, "replay: min_size (20,000) must not be larger than capacity (10)"),
        ({"replay": {"compression": "zip"}}, "replay.compression: input should be 'none' or 'lz4'"),
        ({"learner": {"device": "tpu"}}, "learner.device: input should be"),
        ({"system": {"max_policy_lag": 2}}, "system.max_policy_lag=2: ppo bears 1"),
        ({"system": {"overrun": "drop"}}, "system.overrun=drop is for algo.name=impala"),
        (
            {"algo": {"name": "impala", "batch_unrolls": 1}, "system": {"max_policy_lag": 0}},
            "algo.batch_unrolls is for a policy lag",
        ),
        ({"system": {"max_policy_lag": -1}}, "system: max_policy_lag must not be negative"),
        ({"rollout": {"groups": 0}}, "rollout: actors, lanes and threads must not be negative"),
    ],
)
def test_bad_values_are_one_line_that_names_the_key(tree: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(tree)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(UserError, match=r"seed.*algo\.gama"):
        parse({"algo": {"gama": 1}, "seed": "x"})


def test_overrides_reach_nested_keys_and_keep_types() -> None:
    config = override(
        {}, ["algo.gamma=0.95", "env.levels=[1-2, 4-1]", "total_steps=10", "algo.target_kl=null"]
    )
    assert config.algo.gamma == 0.95
    assert config.env.levels == ("1-2", "4-1")
    assert config.total_steps == 10
    assert config.algo.target_kl is None


@pytest.mark.parametrize("text", ["gamma", "=1", "algo=[", "seed.x=1"])
def test_a_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        override({"seed": 0}, [text])


def test_an_override_leaves_the_tree_it_was_given_alone() -> None:
    tree = {"algo": {"gamma": 0.9}}
    override(tree, ["algo.gamma=0.5"])
    assert tree == {"algo": {"gamma": 0.9}}


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no configuration file"):
        load(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: }")
    with pytest.raises(UserError, match="is not valid YAML"):
        load(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not valid YAML"):
        load(broken)
    broken.write_text("just words")
    with pytest.raises(UserError, match="must hold keys and values"):
        load(broken)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)


def test_the_default_tree_is_valid() -> None:
    assert parse({}) == RunConfig()


def test_a_file_says_only_what_is_different_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\nseed: 3\nenv: {levels: ['1-1'], rewind: 0.5}\nalgo: {lr: [1, 1]}\n"
    )
    (tmp_path / "levels").mkdir()
    path = tmp_path / "levels" / "1-2.yaml"
    path.write_text("base: ../base.yaml\nname: two\nenv: {levels: ['1-2']}\nalgo: {gamma: 0.5}\n")
    config = load(path, ["env.sticky=0.1"])
    assert (config.name, config.seed) == ("two", 3)
    assert (config.env.levels, config.env.rewind, config.env.sticky) == (("1-2",), 0.5, 0.1)
    assert isinstance(config.algo, PPOConfig)
    assert (config.algo.gamma, config.algo.lr) == (0.5, (1.0, 1.0))
    assert "base:" not in dump(config)
    path.write_text("base: ../base.yaml\nalgo: {name: apex}\n")
    apex = load(path)
    assert apex.algo == ApexConfig(), "PPO's settings are no Ape-X's"
    assert apex.env.rewind == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: nowhere.yaml", r"there is no configuration file .*nowhere.yaml, the base of .*it.yaml"),
        ("base: it.yaml", "it.yaml is its own base"),
        ("base: [1]", "it.yaml: base names one file"),
        ('base: "a\\0b"', "it.yaml: base names one file"),
    ],
)
def test_a_base_that_is_none_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load(path)
