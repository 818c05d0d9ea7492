"""Protocols on the probe environment, and on a scripted one where what must be counted is known."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mario_dist.env import EnvConfig, ProbeVectorEnv
from mario_dist.evaluation import (
    SETTINGS,
    EvalProtocol,
    Player,
    blocks,
    evaluate,
    play_block,
    protocol,
    summarise,
)
from mario_dist.nets import ActorCritic, NetworkConfig, build_network
from mario_dist.types import U8, Arrays, EnvSpec, EnvStep, Episode, EvalReport

PROBE = EnvConfig(
    kind="probe", actions="RIGHT_ONLY", frame_size=(8, 10), frame_stack=2, max_steps=99, stall_steps=98
)
PROTOCOL = EvalProtocol(levels=("1-1",), episodes=10, noop_max=0, seed=3, max_steps=12, stall_steps=0)


@pytest.fixture
def network() -> ActorCritic:
    """A policy with opinions: a new one's actions are all but uniform."""
    spec = ProbeVectorEnv(PROBE, 1, (0,)).spec
    network = build_network(NetworkConfig("mlp", 16), spec, seed=0)
    with torch.no_grad():
        network.policy.weight.mul_(300.0)
    return network


def without_seconds(report: EvalReport) -> EvalReport:
    return dataclasses.replace(report, seconds=0.0)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_same_protocol_and_seed_give_the_same_report(network: ActorCritic, greedy: bool) -> None:
    asked = dataclasses.replace(PROTOCOL, greedy=greedy)
    torch.manual_seed(0)
    first = evaluate(network, PROBE, asked)
    torch.manual_seed(1)
    again = evaluate(network, PROBE, asked)
    assert first.seconds > 0.0
    assert without_seconds(first) == without_seconds(again)
    other = evaluate(network, PROBE, dataclasses.replace(asked, seed=4))
    assert other.per_level["probe"]["played"] != first.per_level["probe"]["played"]
    assert other.protocol["seed"] == 4


@pytest.mark.parametrize("episodes", [1, 2, 15, 16, 17, 40])
def test_exactly_the_asked_number_of_episodes(network: ActorCritic, episodes: int) -> None:
    report = evaluate(network, PROBE, dataclasses.replace(PROTOCOL, episodes=episodes))
    assert report.episodes == episodes
    assert sum(report.ends.values()) == episodes
    assert report.per_level["probe"]["episodes"] == episodes


def test_every_level_gets_the_asked_number(network: ActorCritic) -> None:
    report = evaluate(network, PROBE, dataclasses.replace(PROTOCOL, levels=("1-1", "1-2", "2-1")))
    assert report.episodes == 30


def test_the_report_says_which_protocol_made_it(network: ActorCritic) -> None:
    report = evaluate(network, PROBE, PROTOCOL)
    assert report.protocol == {
        "name": "custom",
        "version": protocol.VERSION,
        "levels": ["1-1"],
        "episodes": 10,
        "noop_max": 0,
        "seed": 3,
        "greedy": False,
        "sticky": 0.0,
        "max_steps": 12,
        "stall_steps": 0,
    }


def test_a_protocol_is_known_by_its_name_whatever_its_levels_episodes_and_seed() -> None:
    for name, settings in SETTINGS.items():
        assert EvalProtocol(("1-1",), **settings).name == name
        assert EvalProtocol(("8-4", "1-2"), episodes=7, seed=9, **settings).name == name
    assert EvalProtocol(("1-1",), noop_max=29).name == "custom"
    assert EvalProtocol(("1-1",), stall_steps=100).name == "custom"


def test_blocks_are_of_equal_size_and_their_results_their_own(network: ActorCritic) -> None:
    """However many threads play them, and whatever other levels are judged."""
    asked = dataclasses.replace(PROTOCOL, levels=("1-1", "2-3"), episodes=101)
    parts = blocks(asked)
    assert [(b.level, b.index, b.episodes) for b in parts[:3]] == [
        ("1-1", 0, 34),
        ("1-1", 1, 34),
        ("1-1", 2, 33),
    ]
    assert len(parts) == 6
    assert without_seconds(evaluate(network, PROBE, asked, 3)) == without_seconds(
        evaluate(network, PROBE, asked, 1)
    )
    first, second = (play_block(network, PROBE, asked, block) for block in parts[:2])
    assert [e.episode_return for e in first] != [e.episode_return for e in second]
    alone = dataclasses.replace(asked, levels=("2-3",))
    assert [dataclasses.replace(e, seconds=0.0) for e in play_block(network, PROBE, alone, parts[3])] == [
        dataclasses.replace(e, seconds=0.0) for e in play_block(network, PROBE, asked, parts[3])
    ]


def actions_of(player: Player, env: ProbeVectorEnv, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    taken: list[list[int]] = []
    step = env.step
    monkeypatch.setattr(env, "step", lambda action_N: taken.append(action_N.tolist()) or step(action_N))
    for _ in range(30):
        player.step()
    return taken


def test_greedy_takes_the_likeliest_action_whatever_the_seed(
    network: ActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for seed in (0, 1):
        env = ProbeVectorEnv(PROBE, 3, (0,))
        taken.append(actions_of(Player(network, env, seed=seed, greedy=True), env, monkeypatch))
    assert taken[0] == taken[1]

    env = ProbeVectorEnv(PROBE, 3, (0,))
    first = np.repeat(env.reset()[:, None], PROBE.frame_stack, axis=1)
    assert taken[0][0] == network(torch.from_numpy(first)).logits_BA.argmax(-1).tolist()


def test_sampling_draws_from_the_policy_by_its_seed(
    network: ActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for seed in (0, 0, 1):
        env = ProbeVectorEnv(PROBE, 3, (0,))
        taken.append(actions_of(Player(network, env, seed=seed, greedy=False), env, monkeypatch))
    assert taken[0] == taken[1]
    assert taken[0] != taken[2]

    lanes = 2000  # what 2000 lanes with the same picture do is the policy's distribution
    env = ProbeVectorEnv(dataclasses.replace(PROBE, frame_stack=1), lanes, (0,))
    small = build_network(NetworkConfig("mlp", 8), env.spec, seed=1)
    with torch.no_grad():
        small.policy.weight.mul_(100.0)
    monkeypatch.setattr(env, "reset", lambda: np.full((lanes, 8, 10), 200, dtype=np.uint8))
    drawn = actions_of(Player(small, env, seed=0, greedy=False), env, monkeypatch)[0]
    share = np.bincount(drawn, minlength=env.spec.n_actions) / lanes
    expected = small(torch.full((1, 1, 8, 10), 200, dtype=torch.uint8)).logits_BA.softmax(-1)[0]
    assert share == pytest.approx(expected.detach().numpy(), abs=0.05)


class ScriptedEnv:
    """Lane i's episodes last 3 * i + 1 steps, are worth i, and end with the flag in even lanes."""

    def __init__(self, n_lanes: int) -> None:
        self.n_lanes = n_lanes
        self.spec = EnvSpec((8, 8), 1, ("left", "right"), 4)
        self.closed = False
        self._t = 0

    def reset(self) -> U8:
        return np.zeros((self.n_lanes, 8, 8), dtype=np.uint8)

    def step(self, action_N: NDArray[np.int64]) -> EnvStep:
        self._t += 1
        lanes = [lane for lane in range(self.n_lanes) if self._t % (3 * lane + 1) == 0]
        terminated_N = np.isin(np.arange(self.n_lanes), lanes)
        return EnvStep(
            self.reset(),
            np.zeros(self.n_lanes, dtype=np.float32),
            terminated_N,
            np.zeros_like(terminated_N),
            self.reset()[lanes],
            np.array(lanes, dtype=np.int64),
            tuple(an_episode(lane, x=lane, flag=lane % 2 == 0, length=3 * lane + 1) for lane in lanes),
        )

    def state(self) -> Arrays:
        return {}

    def restore(self, arrays: Arrays) -> None: ...

    def close(self) -> None:
        self.closed = True


def an_episode(lane: int, x: int, flag: bool, length: int = 1, level: str = "1-1") -> Episode:
    return Episode(
        lane=lane,
        level=level,
        world=1,
        stage=1,
        episode_return=x / 2,
        length=length,
        x_pos_max=x,
        score=0,
        coins=0,
        time_left=0,
        life=2,
        status="small",
        flag_get=flag,
        end="flag" if flag else "death",
        seconds=0.0,
        frames=4 * length,
    )


@pytest.mark.parametrize("episodes", [3, 16, 19, 64])
def test_short_episodes_are_not_favoured(episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first episodes that begin are those that count: lane 15's first, 46 times as long as lane 0's,
    is one of the first 16."""
    made: list[ScriptedEnv] = []

    def make_env(config: EnvConfig, n_lanes: int, seed: Sequence[int], on_frame: None) -> ScriptedEnv:
        made.append(ScriptedEnv(n_lanes))
        return made[-1]

    judged: list[Episode] = []

    def recording(episodes: Sequence[Episode], *rest: Any) -> EvalReport:
        judged.extend(episodes)
        return summarise(episodes, *rest)

    monkeypatch.setattr(protocol, "make_env", make_env)
    monkeypatch.setattr(protocol, "summarise", recording)
    network = build_network(NetworkConfig("mlp", 4), ScriptedEnv(1).spec, seed=0)
    report = evaluate(network, PROBE, dataclasses.replace(PROTOCOL, episodes=episodes))

    expected: list[int] = []  # the lanes in which episodes begin, as time goes on
    for env in made:
        begun = [(0, lane) for lane in range(env.n_lanes)]
        for t in range(1, 200):
            begun += [(t, lane) for lane in range(env.n_lanes) if t % (3 * lane + 1) == 0]
        count = episodes // len(made) + (len(expected) == 0 and episodes % len(made))
        expected += [lane for _, lane in begun[:count]]
    assert [e.lane for e in judged] == expected
    assert set(range(min(episodes, 16))) <= set(expected)
    assert report.episodes == episodes
    assert all(env.closed for env in made)


def test_the_environment_is_closed_when_playing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    env = ScriptedEnv(2)

    def fail(action_N: NDArray[np.int64]) -> EnvStep:
        raise RuntimeError("the emulator died")

    env.step = fail  # type: ignore[method-assign]
    monkeypatch.setattr(protocol, "make_env", lambda *_, **__: env)
    with pytest.raises(RuntimeError, match="the emulator died"):
        evaluate(build_network(NetworkConfig("mlp", 4), env.spec, seed=0), PROBE, PROTOCOL)
    assert env.closed


def test_evaluate_asks_for_the_environment_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[EnvConfig, int, tuple[int, ...]]] = []

    def make_env(config: EnvConfig, n_lanes: int, seed: Sequence[int], on_frame: None) -> ScriptedEnv:
        asked.append((config, n_lanes, tuple(seed)))
        return ScriptedEnv(n_lanes)

    monkeypatch.setattr(protocol, "make_env", make_env)
    wanted = EvalProtocol(levels=("1-1", "4-2"), episodes=2, noop_max=7, seed=11, sticky=0.25)
    network = build_network(NetworkConfig("mlp", 4), ScriptedEnv(1).spec, seed=0)
    evaluate(network, dataclasses.replace(PROBE, rewind=0.5, end_astray=True), wanted)
    base = dataclasses.replace(PROBE, noop_max=7, sticky=0.25, max_steps=4500, stall_steps=300)
    assert asked == [
        (dataclasses.replace(base, levels=("1-1",)), 2, (11, 0, 0)),
        (dataclasses.replace(base, levels=("4-2",)), 2, (11, 13, 0)),
    ]


def test_summarise() -> None:
    episodes = [
        *(an_episode(0, x, flag=x == 40, level="1-1") for x in (10, 20, 30, 40)),
        *(an_episode(0, x, flag=False, level="1-2") for x in (100, 200)),
    ]
    report = summarise(episodes, PROTOCOL, seconds=2.0)
    assert report.clear_rate == 1 / 6
    assert report.clear_rate_ci == pytest.approx((0.0301, 0.5635), abs=1e-4)
    assert report.x_pos["mean"] == pytest.approx(400 / 6)
    assert report.x_pos["median"] == 35.0
    assert report.x_pos["iqm"] == pytest.approx((20 + 30 + 40 + 100) / 4)
    assert report.x_pos["max"] == 200.0
    assert report.per_level["1-1"] == {
        "episodes": 4,
        "clear_rate": 0.25,
        "clear_rate_ci": pytest.approx([0.0456, 0.6994], abs=1e-4),
        "x_pos_mean": 25.0,
        "x_pos_iqm": 25.0,
        "failures": [{"end": "death", "x_from": 0, "x_to": 100, "episodes": 3}],
        "seconds_to_clear": pytest.approx({"mean": 0.06656, "median": 0.06656, "best": 0.06656}, rel=1e-3),
        "played": {
            "x_pos": [10, 20, 30, 40],
            "end": ["death", "death", "death", "flag"],
            "agent_steps": [1, 1, 1, 1],
        },
    }
    assert [(p["x_from"], p["x_to"]) for p in report.per_level["1-2"]["failures"]] == [(100, 200), (200, 300)]  # type: ignore[union-attr, call-overload]
    assert report.per_level["1-2"]["seconds_to_clear"] is None
    assert report.per_level["1-2"]["clear_rate_ci"] == pytest.approx([0.0, 0.6576], abs=1e-4)
    assert report.ends == {"flag": 1, "death": 5}
    assert report.mean_return == pytest.approx(200 / 6)
    assert report.rank == (1 / 6, report.x_pos["mean"])


def test_reports_rank_by_clear_rate_then_by_distance() -> None:
    def rank(*episodes: Episode) -> tuple[float, float]:
        return summarise(episodes, PROTOCOL, 0.0).rank

    far, near, cleared = an_episode(0, 300, False), an_episode(0, 30, False), an_episode(0, 1, True)
    assert rank(cleared, near) > rank(far, far) > rank(far, near)


@pytest.mark.parametrize(("frame_skip", "steps"), [(1, 48), (4, 12), (8, 6), (5, 10), (48, 1)])
def test_limits_are_as_long_in_the_game_whatever_a_policys_step_is(
    network: ActorCritic, frame_skip: int, steps: int
) -> None:
    """12 steps of 4 frames; nobody reaches the corridor's end, and two wrong answers are no death yet."""
    env = dataclasses.replace(PROBE, frame_skip=frame_skip)
    report = evaluate(network, env, PROTOCOL)
    lengths = [
        length
        for end, length in zip(
            report.per_level["probe"]["played"]["end"],  # type: ignore[index]
            report.per_level["probe"]["played"]["agent_steps"],  # type: ignore[index]
            strict=True,
        )
        if end == "truncated"
    ]
    assert max(lengths, default=steps) == steps
    assert report.protocol["max_steps"] == 12
    endless = dataclasses.replace(PROTOCOL, max_steps=0)
    assert evaluate(network, env, endless).ends.get("truncated", 0) == 0
