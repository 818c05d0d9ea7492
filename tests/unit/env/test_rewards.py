"""Reward presets by hand-computed cases, and ``native`` against the package that it is named after."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from gym_super_mario_bros import SuperMarioBrosEnv

from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.actions import joypad_bytes
from mario_dist.env.game import GameState
from mario_dist.env.rewards import clipped, landed, native, progress, reward_fn, shaped

SHAPED_MILESTONES = {650: 150.0, 900: 100.0, 1200: 150.0, 1600: 200.0, 2000: 250.0}


def state(
    x: int = 100,
    *,
    best: int | None = None,
    raw: int | None = None,
    raw_best: int | None = None,
    landed: int | None = None,
    score: int = 0,
    coins: int = 0,
    time: int = 400,
    status: int = 0,
    flag: bool = False,
    dying: bool = False,
) -> GameState:
    """One lane. ``x`` is x_pos; the bests are where Mario is unless they are given."""
    raw = x if raw is None else raw

    def int_(value: int) -> np.ndarray:
        return np.array([value], dtype=np.int32)

    return GameState(
        x_raw=int_(raw),
        x_offset=int_(x - raw),
        x_best=int_(x if best is None else best),
        x_raw_best=int_(raw if raw_best is None else raw_best),
        x_landed=int_(x if landed is None else landed),
        world=int_(1),
        stage=int_(1),
        area=int_(1),
        score=int_(score),
        coins=int_(coins),
        time=int_(time),
        life=int_(2),
        status=int_(status),
        player_state=int_(8),
        flag=np.array([flag]),
        dying=np.array([dying]),
    )


def only(reward_N: np.ndarray) -> float:
    assert reward_N.dtype == np.float32
    assert reward_N.shape == (1,)
    return float(reward_N[0])


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(state(100), state(103), 3, id="new best"),
        pytest.param(state(100), state(105), 5, id="the largest step"),
        pytest.param(state(100), state(106), 0, id="a jump is another place"),
        pytest.param(state(100), state(97, raw_best=100), 0, id="back"),
        pytest.param(state(90, raw_best=100), state(93, raw_best=100), 0, id="not a best"),
        pytest.param(state(99, raw_best=100), state(102), 2, id="over the best"),
        pytest.param(state(500, raw=20), state(503, raw=23), 3, id="in a bonus area, by its own x"),
        pytest.param(state(time=400), state(time=399), -1, id="the clock ticks"),
        pytest.param(state(time=3), state(time=400), 0, id="the clock is set"),
        pytest.param(state(score=100), state(score=300), 2, id="score"),
        pytest.param(state(score=300), state(score=0), 0, id="score is lost"),
        pytest.param(state(coins=3), state(coins=5), 10, id="coins"),
        pytest.param(state(coins=99), state(coins=0), 5, id="the hundredth coin"),
        pytest.param(state(coins=5), state(coins=0), 0, id="coins are lost"),
        pytest.param(state(status=0), state(status=1), 5, id="mushroom"),
        pytest.param(state(status=2), state(status=0), -10, id="hit"),
        pytest.param(state(), state(flag=True), 15, id="flag, clipped from 50"),
        pytest.param(state(), state(dying=True), -15, id="death, clipped from -25"),
        pytest.param(state(flag=True), state(flag=True), 0, id="the flag pays once"),
        pytest.param(state(dying=True), state(dying=True), -15, id="death pays as long as it lasts"),
        pytest.param(state(), state(dying=True, score=2000), -5, id="the clip is of the sum"),
        pytest.param(state(), state(score=2000), 15, id="clipped above"),
        pytest.param(
            state(100, time=400, coins=1), state(102, time=399, coins=2, score=250), 2 - 1 + 2.5 + 5, id="sum"
        ),
    ],
)
def test_native(previous: GameState, current: GameState, expected: float) -> None:
    assert only(native(previous, current)) == pytest.approx(expected)


def test_native_over_more_frames_takes_longer_steps() -> None:
    assert only(native(state(100), state(112), frames=4)) == 12
    assert only(native(state(100), state(120), frames=4)) == 15, "20 pixels, clipped"
    assert only(native(state(100), state(121), frames=4)) == 0
    assert only(reward_fn("native", 4)(state(100), state(112))) == 12
    assert only(reward_fn("native", 1)(state(100), state(112))) == 0


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(state(100), state(110), 1.0, id="new best"),
        pytest.param(state(100), state(130), 3.0, id="at most 30 pixels"),
        pytest.param(state(100), state(200), 3.0, id="more than 30 pixels"),
        pytest.param(state(100), state(90, best=100), 0.0, id="back"),
        pytest.param(state(90, best=100), state(98, best=100), 0.0, id="not a best"),
        pytest.param(state(90, best=100), state(104), 0.4, id="over the best"),
        pytest.param(state(600, raw=20), state(612, raw=32), 1.2, id="in a bonus area"),
        pytest.param(state(score=100), state(score=300), 0.2, id="score"),
        pytest.param(state(score=300), state(score=0), 0.0, id="score is lost"),
        pytest.param(state(time=400), state(time=390, coins=5, status=1), 0.0, id="others do not pay"),
        pytest.param(state(), state(flag=True), 5.0, id="flag"),
        pytest.param(state(), state(dying=True), -2.5, id="death"),
        pytest.param(state(flag=True), state(flag=True), 0.0, id="the flag pays once"),
        pytest.param(state(dying=True), state(dying=True), 0.0, id="death pays once"),
        pytest.param(state(), state(flag=True, dying=True), 5.0, id="the flag wins"),
        pytest.param(state(100), state(104, score=200, dying=True), -1.9, id="sum"),
    ],
)
def test_progress(previous: GameState, current: GameState, expected: float) -> None:
    assert only(progress(previous, current)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(state(100), state(110), 1.0, id="walking"),
        pytest.param(state(100), state(110, landed=100), 0.0, id="in the air"),
        pytest.param(state(190, landed=100), state(200), 10.0, id="a whole leap, when it ends"),
        pytest.param(state(190, landed=100), state(110, best=200, landed=110), 1.0, id="back from the air"),
        pytest.param(state(190, landed=100), state(200, landed=100, dying=True), -2.5, id="into a pit"),
        pytest.param(state(score=100), state(score=300, flag=True), 5.2, id="the rest as progress"),
    ],
)
def test_landed(previous: GameState, current: GameState, expected: float) -> None:
    assert only(landed(previous, current)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(state(100), state(104), 0.4, id="right"),
        pytest.param(state(100), state(97, best=100), -0.3, id="left"),
        pytest.param(state(100), state(100), -0.2, id="still"),
        pytest.param(state(90, best=100), state(93, best=100), 0.3, id="right, not a best"),
        pytest.param(state(), state(dying=True), -50.2, id="death"),
        pytest.param(state(dying=True), state(dying=True), -0.2, id="death pays once"),
        pytest.param(state(), state(flag=True, dying=True), -0.2, id="the flag wins"),
        pytest.param(state(100, score=0), state(104, score=900, time=1), 0.4, id="others do not pay"),
    ],
)
def test_shaped(previous: GameState, current: GameState, expected: float) -> None:
    assert only(shaped(previous, current)) == pytest.approx(expected)


@pytest.mark.parametrize(("place", "bonus"), SHAPED_MILESTONES.items())
def test_shaped_milestones(place: int, bonus: float) -> None:
    before, there, after = state(place - 1), state(place), state(place + 3)
    assert only(shaped(before, there)) == pytest.approx(0.1 + bonus)
    assert only(shaped(before, after)) == pytest.approx(0.4 + bonus), "stepped over"
    assert only(shaped(there, after)) == pytest.approx(0.3)
    back = state(place - 2, best=place)
    assert only(shaped(back, state(place, best=place))) == pytest.approx(0.2), "a second time"


def test_shaped_milestones_are_paid_once_each_in_an_episode() -> None:
    """Over a walk there, back and there again."""
    xs = [*range(40, 2100, 4), *range(2100, 600, -4), *range(600, 2100, 4)]
    best, total = xs[0], 0.0
    for x_0, x_1 in pairwise(xs):
        previous, best = state(x_0, best=best), max(best, x_1)
        total += only(shaped(previous, state(x_1, best=best)))
    assert total == pytest.approx(0.1 * (xs[-1] - xs[0]) + sum(SHAPED_MILESTONES.values()), rel=1e-3)


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        pytest.param(state(100), state(104), 0.1, id="right"),
        pytest.param(state(100), state(1), -0.1, id="left"),
        pytest.param(state(100), state(100), 0.0, id="still"),
        pytest.param(state(), state(dying=True), -1.0, id="death, clipped from -5"),
        pytest.param(state(dying=True), state(dying=True), 0.0, id="death pays once"),
        pytest.param(state(), state(flag=True), 1.0, id="flag, clipped from 100"),
        pytest.param(state(), state(100, flag=True, dying=True), 1.0, id="the flag wins"),
        pytest.param(state(flag=True), state(flag=True), 0.0, id="the flag pays once"),
        pytest.param(state(100), state(103, dying=True), -1.0, id="a last step right"),
    ],
)
def test_clipped(previous: GameState, current: GameState, expected: float) -> None:
    assert only(clipped(previous, current)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["native", "progress", "landed", "shaped", "clipped"])
def test_lanes_are_paid_apart(name: str) -> None:
    pairs = [
        (state(100), state(104)),
        (state(100), state(100, dying=True)),
        (state(649), state(653, score=200)),
        (state(100), state(90, best=100, flag=True)),
    ]
    previous, current = (
        GameState.from_arrays(
            {
                key: np.concatenate([pair[i].to_arrays("")[key] for pair in pairs])
                for key in pairs[0][i].to_arrays("")
            },
            "",
        )
        for i in range(2)
    )
    together = reward_fn(name, 1)(previous, current)
    assert together.tolist() == [only(reward_fn(name, 1)(a, b)) for a, b in pairs]
    assert len(set(together.tolist())) == 4 if name != "clipped" else 3


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(KeyError, match="nativ"):
        reward_fn("nativ", 4)


# The package's own reward.

# (action of SIMPLE, steps of four frames): clears 1-1 from its start and one frame. Found by search.
CLEAR = (
    (3, 16), (4, 15), (3, 8), (4, 5), (3, 8), (4, 10), (3, 4), (4, 5), (4, 8), (4, 10), (3, 4),
    (4, 5), (3, 12), (3, 2), (4, 13), (3, 12), (4, 3), (3, 8), (4, 8), (3, 2), (4, 8), (3, 4),
    (4, 6), (3, 8), (4, 5), (3, 12), (4, 10), (3, 10), (4, 8), (3, 8), (4, 5), (3, 8), (4, 14),
    (3, 12), (4, 5), (3, 4), (4, 3), (3, 12), (4, 5), (3, 8), (4, 5), (3, 2), (4, 13), (3, 4),
    (4, 10), (3, 4), (4, 19), (3, 8), (4, 3),
)  # fmt: skip


def at_random(seed: int, right: float) -> Iterator[int]:
    """Actions of SIMPLE held for a while, to the right with this probability, for ever."""
    rng = np.random.default_rng(seed)
    while True:
        action = int(rng.integers(1, 5)) if rng.random() < right else int(rng.integers(7))
        yield from [action] * int(rng.integers(1, 24))


def scripted() -> Iterator[int]:
    for action, steps in CLEAR:
        yield from [action] * 4 * steps


@pytest.fixture(scope="module")
def package() -> Iterator[SuperMarioBrosEnv]:
    env = SuperMarioBrosEnv(target=(1, 1))
    yield env
    env.close()


@pytest.mark.parametrize(
    ("actions", "limit", "end"),
    [
        pytest.param(at_random(0, 0.3), 500, None, id="random"),
        pytest.param(at_random(1, 1.0), 2000, "death", id="right 1"),
        pytest.param(at_random(2, 0.95), 2000, "death", id="right 2"),
        pytest.param(iter([1] * 400), 400, "death", id="into the goomba"),
        pytest.param(scripted(), 4000, "flag", id="clear"),
    ],
)
def test_native_is_the_reward_of_gym_super_mario_bros(
    package: SuperMarioBrosEnv, actions: Iterator[int], limit: int, end: str | None
) -> None:
    """Our lane beside theirs, frame by frame, to the end of the episode.

    Theirs writes to RAM where Mario is busy (pipes, the way to the castle). Nothing here makes him busy
    before the end, and that the two machines stay the same, byte by byte, is checked, not assumed.
    """
    config = EnvConfig(reward="native", frame_skip=1, noop_max=0, stall_steps=0, max_steps=0)
    env = MarioVectorEnv(config, 1, (0,))
    env.reset()
    package.reset()
    package.step(0)  # our episodes start one frame after the saved start
    joypads = joypad_bytes("SIMPLE")
    rewards: list[float] = []
    ended: str | None = None
    for _, action in zip(range(limit), actions, strict=False):
        step = env.step(np.array([action]))
        _, reward, terminated, truncated, info = package.step(int(joypads[action]))
        rewards.append(reward)
        assert step.reward_N[0] == pytest.approx(reward, abs=1e-5), (len(rewards), info["reward_components"])
        assert (step.terminated_N[0], step.truncated_N[0]) == (terminated, truncated)
        if terminated:
            (episode,) = step.ended
            ended = episode.end
            assert episode.flag_get == info["flag_get"]
            assert (episode.score, episode.coins, episode.time_left, episode.life) == (
                info["score"],
                info["coins"],
                info["time"],
                info["life"],
            )
            assert (episode.world, episode.stage, episode.status) == (1, 1, info["status"])
            assert episode.x_pos_max == info["x_pos_max"]
            assert episode.length == len(rewards)
            assert episode.episode_return == pytest.approx(sum(rewards), abs=1e-3)
            break
        np.testing.assert_array_equal(env._lanes.emulators[0].ram, package.ram)
    env.close()
    assert ended == end
    assert len(rewards) > 100
    assert sum(reward > 0 for reward in rewards) > 50, "hardly anything was compared"
    if end is not None:
        assert rewards[-1] == (15 if end == "flag" else -15)
