"""What an EnvConfig takes and refuses."""

import dataclasses

import pytest

from mario_dist.env import LEVELS, EnvConfig, MarioVectorEnv, ProbeVectorEnv, make_env


def test_there_are_32_levels_in_order() -> None:
    assert len(LEVELS) == len(set(LEVELS)) == 32
    assert LEVELS[:5] == ("1-1", "1-2", "1-3", "1-4", "2-1")
    assert LEVELS[-1] == "8-4"
    assert EnvConfig(levels=LEVELS).levels == LEVELS


def test_the_defaults_are_valid_and_frozen() -> None:
    config = EnvConfig()
    assert (config.kind, config.levels, config.frame_skip, config.frame_size) == (
        "mario",
        ("1-1",),
        4,
        (84, 84),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.frame_skip = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"levels": ("1-1", "9-1")}, "'9-1'"),
        ({"levels": ("1-5",)}, "'1-5'"),
        ({"levels": ("11",)}, "'11'"),
        ({"levels": ()}, "levels"),
        ({"frame_skip": 0}, "frame_skip"),
        ({"frame_stack": 0}, "frame_stack"),
        ({"frame_size": (0, 84)}, "frame_size"),
        ({"frame_size": (84, -1)}, "frame_size"),
        ({"hud_rows": -1}, "hud_rows"),
        ({"hud_rows": 240}, "hud_rows"),
        ({"sticky": -0.1}, "sticky"),
        ({"sticky": 1.0}, "sticky"),
        ({"noop_max": -1}, "noop_max"),
        ({"stall_steps": -1}, "stall_steps"),
        ({"max_steps": -1}, "max_steps"),
        ({"actions": "SIMPEL"}, "'SIMPEL'"),
        ({"actions": (("right", "jump"),)}, "'jump'"),
        ({"actions": ()}, "actions"),
    ],
)
def test_errors_name_the_bad_thing(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EnvConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"hud_rows": 0},
        {"hud_rows": 239},
        {"sticky": 0.0},
        {"sticky": 0.99},
        {"noop_max": 0, "stall_steps": 0, "max_steps": 0},
        {"frame_skip": 1, "frame_stack": 1, "frame_size": (1, 1)},
        {"actions": (("right",), ("right", "A"))},
    ],
)
def test_the_edges_are_allowed(change: dict[str, object]) -> None:
    EnvConfig(**change)  # type: ignore[arg-type]


def test_make_env_makes_what_the_config_says() -> None:
    config = EnvConfig(actions="RIGHT_ONLY", frame_size=(42, 44), frame_stack=3, frame_skip=2)
    for kind, cls in (("mario", MarioVectorEnv), ("probe", ProbeVectorEnv)):
        env = make_env(dataclasses.replace(config, kind=kind), 2, (0, 1))
        assert isinstance(env, cls)
        assert env.n_lanes == 2
        assert env.spec.frame_shape == (42, 44)
        assert env.spec.frame_stack == 3
        assert env.spec.frame_skip == 2
        assert env.spec.n_actions == 5
        assert env.spec.action_names[1] == "right"
        assert env.reset().shape == (2, 42, 44)
        env.close()
