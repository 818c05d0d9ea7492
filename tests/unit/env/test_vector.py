"""The contract of ``VectorEnv``, for the real game and for the probe that stands in for it."""

import dataclasses
import gc
import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from mario_dist.emulator import make_emulator, nes_py, new_grey
from mario_dist.emulator.picture import AreaResizer
from mario_dist.env import EnvConfig, MarioVectorEnv, ProbeVectorEnv, VectorEnv, make_env
from mario_dist.env.actions import joypad_bytes
from mario_dist.env.starts import level_start
from mario_dist.types import Arrays, EnvStep, Episode

PROBE = EnvConfig(kind="probe", frame_size=(12, 21), stall_steps=0, max_steps=9)
# Short episodes of several kinds, on levels that look different, with everything random turned on.
MARIO = EnvConfig(levels=("1-1", "5-2"), sticky=0.25, noop_max=9, frame_skip=2, stall_steps=8, max_steps=11)
BOTH = pytest.mark.parametrize("config", [PROBE, MARIO], ids=["probe", "mario"])
BACKENDS = pytest.mark.parametrize("backend", ["native", "nes-py"])
Backend = Literal["native", "nes-py"]
NOOP, RIGHT = 0, 1


def actions_of(seed: int, steps: int, lanes: int, n_actions: int = 7) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(n_actions, size=(steps, lanes))


def good_actions(env: VectorEnv, seed: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """Random actions; on the probe mostly the right one, which the frame shows, so that all ends come."""
    rng = np.random.default_rng(seed)
    for action_N in actions_of(seed, steps, env.n_lanes):
        if isinstance(env, ProbeVectorEnv):
            action_N = np.where(rng.random(env.n_lanes) < 0.6, env._answer_N, action_N)
        yield action_N


def copied(step: EnvStep) -> EnvStep:
    return EnvStep(
        step.frame_NHW.copy(),
        step.reward_N.copy(),
        step.terminated_N.copy(),
        step.truncated_N.copy(),
        step.final_frame_FHW.copy(),
        step.final_lane_F.copy(),
        tuple(timeless(episode) for episode in step.ended),
    )


def timeless(episode: Episode) -> Episode:
    return dataclasses.replace(episode, seconds=0.0)


def run(env: VectorEnv, actions_TN: NDArray[np.int64]) -> list[EnvStep]:
    return [copied(env.step(action_N)) for action_N in actions_TN]


def assert_same(a: EnvStep, b: EnvStep) -> None:
    np.testing.assert_array_equal(a.frame_NHW, b.frame_NHW)
    np.testing.assert_array_equal(a.reward_N, b.reward_N)
    np.testing.assert_array_equal(a.terminated_N, b.terminated_N)
    np.testing.assert_array_equal(a.truncated_N, b.truncated_N)
    np.testing.assert_array_equal(a.final_frame_FHW, b.final_frame_FHW)
    np.testing.assert_array_equal(a.final_lane_F, b.final_lane_F)
    assert a.ended == b.ended


def lane_of(step: EnvStep, lane: int) -> EnvStep:
    """What the step says of one lane, as a step of one lane."""
    rows = step.final_lane_F == lane
    return EnvStep(
        step.frame_NHW[lane : lane + 1],
        step.reward_N[lane : lane + 1],
        step.terminated_N[lane : lane + 1],
        step.truncated_N[lane : lane + 1],
        step.final_frame_FHW[rows],
        step.final_lane_F[rows] * 0,
        tuple(dataclasses.replace(e, lane=0) for e in step.ended if e.lane == lane),
    )


# One step.


@BOTH
def test_every_step_keeps_the_contract(config: EnvConfig) -> None:
    n = 3
    env = make_env(config, n, (0, 1))
    assert env.n_lanes == n
    shape = config.frame_size
    first = env.reset()
    assert first.shape == (n, *shape)
    assert first.dtype == np.uint8
    returns, lengths = np.zeros(n), np.zeros(n, dtype=int)
    ends: list[str] = []
    for action_N in good_actions(env, 0, 60):
        step = env.step(action_N)
        assert step.frame_NHW.shape == (n, *shape)
        assert step.frame_NHW.dtype == step.final_frame_FHW.dtype == np.uint8
        assert step.reward_N.dtype == np.float32
        assert step.reward_N.shape == step.terminated_N.shape == step.truncated_N.shape == (n,)
        assert step.terminated_N.dtype == step.truncated_N.dtype == np.bool_
        assert not (step.terminated_N & step.truncated_N).any()
        ended = np.flatnonzero(step.terminated_N | step.truncated_N)
        np.testing.assert_array_equal(step.final_lane_F, ended)
        assert step.final_lane_F.dtype == np.int64
        assert step.final_frame_FHW.shape == (len(ended), *shape)
        assert [episode.lane for episode in step.ended] == ended.tolist()

        returns += step.reward_N
        lengths += 1
        for episode in step.ended:
            lane = episode.lane
            assert step.truncated_N[lane] == (episode.end == "truncated")
            assert episode.flag_get == (episode.end == "flag")
            assert episode.length == lengths[lane]
            assert episode.episode_return == pytest.approx(returns[lane], abs=1e-4)
            assert episode.seconds > 0
            assert episode.level in (*config.levels, "probe")
            returns[lane], lengths[lane] = 0, 0
            ends.append(episode.end)
    env.close()
    assert len(ends) > 10
    assert len(set(ends)) >= 2, "one kind of end only was seen"


@pytest.mark.parametrize("frame_skip", [1, 4])
def test_autoreset_against_a_lane_driven_by_hand(frame_skip: int) -> None:
    """The frame is the next episode's first, the final frame the true last, the rest what the lane did."""
    config = EnvConfig(noop_max=0, frame_skip=frame_skip, max_steps=5, stall_steps=0)
    env = MarioVectorEnv(config, 2, (3,))
    joypads, start = joypad_bytes(config.actions), level_start("auto", "1-1")
    lanes = [make_emulator("auto") for _ in range(2)]
    resizer = AreaResizer(*config.frame_size, config.hud_rows)

    def look(lane: int) -> NDArray[np.uint8]:
        grey, frame = new_grey(), np.empty(config.frame_size, dtype=np.uint8)
        lanes[lane].grey(grey)
        resizer(grey, frame)
        return frame

    def begin(lane: int) -> NDArray[np.uint8]:
        lanes[lane].load(start)
        lanes[lane].step(0)
        return look(lane)

    firsts = [begin(lane) for lane in range(2)]
    np.testing.assert_array_equal(env.reset(), firsts)
    for t, action_N in enumerate(actions_of(1, 12, 2)):
        for lane in range(2):
            for _ in range(frame_skip):
                lanes[lane].step(int(joypads[action_N[lane]]))
        lasts = [look(lane) for lane in range(2)]
        step = env.step(action_N)
        if t % 5 == 4:
            assert step.truncated_N.all()
            np.testing.assert_array_equal(step.final_frame_FHW, lasts)
            np.testing.assert_array_equal(step.frame_NHW, [begin(lane) for lane in range(2)])
            np.testing.assert_array_equal(step.frame_NHW, firsts)
            assert (step.final_frame_FHW != step.frame_NHW).any()
            for lane in range(2):
                np.testing.assert_array_equal(env._lanes.emulators[lane].ram, lanes[lane].ram)
        else:
            assert not step.ended
            assert step.final_frame_FHW.shape == (0, 84, 84)
            np.testing.assert_array_equal(step.frame_NHW, lasts)
    env.close()


@BOTH
def test_other_lanes_play_on_while_one_is_reset(config: EnvConfig) -> None:
    """Only a lane that ended gets a new start: lengths differ from lane to lane."""
    config = dataclasses.replace(config, max_steps=0, stall_steps=3, sticky=0.0)
    env = make_env(config, 2, (0,))
    env.reset()
    lengths: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(9):
        right, wrong = (
            (env._answer_N[1], env._answer_N[0] + 1) if isinstance(env, ProbeVectorEnv) else (RIGHT, NOOP)
        )
        for episode in env.step(np.array([wrong % 7, right])).ended:
            lengths[episode.lane].append(episode.length)
    assert lengths == {0: [3, 3, 3], 1: []}
    env.close()


# What a lane's life depends on.


@BOTH
def test_a_lane_depends_on_its_seed_and_its_actions_alone(config: EnvConfig) -> None:
    actions = actions_of(2, 40, 4)
    alone, among = make_env(config, 1, (7, 0)), make_env(config, 4, (7, 0))
    np.testing.assert_array_equal(alone.reset()[0], among.reset()[0])
    ends = 0
    for one, four in zip(run(alone, actions[:, :1]), run(among, actions), strict=True):
        assert_same(one, lane_of(four, 0))
        ends += len(one.ended)
    assert ends >= 3
    alone.close()
    among.close()


@BOTH
def test_lanes_and_seeds_have_random_streams_of_their_own(config: EnvConfig) -> None:
    actions = np.repeat(actions_of(3, 25, 1), 3, axis=1)
    env, again, other = (make_env(config, 3, seed) for seed in ((7, 0), (7, 0), (7, 1)))
    env.reset(), again.reset(), other.reset()
    a, b, c = (run(e, actions) for e in (env, again, other))
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)
    frames = [
        np.concatenate([s.frame_NHW[lane : lane + 1] for s in steps]) for steps in (a, c) for lane in range(3)
    ]
    assert len({f.tobytes() for f in frames}) == 6
    for e in (env, again, other):
        e.close()


@BACKENDS
def test_threads_change_nothing(backend: Backend) -> None:
    actions, config = actions_of(4, 30, 4), dataclasses.replace(MARIO, emulator=backend)
    one, two = (MarioVectorEnv(config, 4, (5,), threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.reset(), two.reset())
    for a, b in zip(run(one, actions), run(two, actions), strict=True):
        assert_same(a, b)
    one.close()
    two.close()


def test_a_failure_of_on_frame_stops_the_step() -> None:
    def fail(lane: int, _: object) -> None:
        if lane == 1:
            raise RuntimeError("lane 1 is broken")

    env = MarioVectorEnv(EnvConfig(), 2, (0,), threads=2, on_frame=fail)
    env.reset()
    with pytest.raises(RuntimeError, match="lane 1 is broken"):
        env.step(np.array([0, 0]))
    env.close()


@BACKENDS
def test_on_frame_sees_every_frame_of_a_step(backend: Backend) -> None:
    seen: list[tuple[int, int]] = []
    env = MarioVectorEnv(
        EnvConfig(frame_skip=3, emulator=backend),
        2,
        (0,),
        on_frame=lambda lane, emulator: seen.append((lane, int(emulator.ram[0x09]))),
    )
    env.reset()
    assert seen == [], "the frames before the start are not shown"
    starts = [int(emulator.ram[0x09]) for emulator in env._lanes.emulators]
    env.step(np.array([0, 0]))
    assert [lane for lane, _ in seen] == [0, 1, 0, 1, 0, 1], "frame by frame, all lanes in turn"
    # The game counts its frames there, inside an interrupt that a frame's end may cut: early or late by one.
    for lane in range(2):
        counts = [count for at, count in seen if at == lane]
        assert 2 <= (counts[-1] - starts[lane]) % 256 <= 4
        assert counts[-1] == int(env._lanes.emulators[lane].ram[0x09])
    env.close()


@BACKENDS
def test_who_watches_changes_nothing(backend: Backend) -> None:
    actions, config = actions_of(9, 20, 2), dataclasses.replace(MARIO, emulator=backend)
    seen, shape = [], (240, 256, 3)
    watched = MarioVectorEnv(config, 2, (5,), on_frame=lambda lane, emulator: seen.append(emulator.rgb()))
    alone = MarioVectorEnv(config, 2, (5,))
    np.testing.assert_array_equal(watched.reset(), alone.reset())
    for a, b in zip(run(watched, actions), run(alone, actions), strict=True):
        assert_same(a, b)
    assert [picture.shape for picture in seen] == [shape] * (20 * 2 * config.frame_skip)
    watched.close()
    alone.close()


# Stop here, go on there.


def through_a_file(arrays: Arrays) -> Arrays:
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


@pytest.mark.parametrize(
    "config",
    [PROBE, MARIO, dataclasses.replace(MARIO, emulator="nes-py")],
    ids=["probe", "mario", "mario on nes-py"],
)
def test_a_restored_env_goes_on_bit_for_bit(config: EnvConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of episodes, in an environment with another seed, with nothing left of the first."""
    before, after = actions_of(5, 13, 3), actions_of(6, 24, 3)
    env = make_env(config, 3, (1,))
    env.reset()
    run(env, before)
    assert isinstance(env, MarioVectorEnv | ProbeVectorEnv)
    assert (env._clock.length_N > 0).any(), "no lane is in the middle of an episode"
    state = env.state()
    kept = {name: array.copy() for name, array in state.items()}
    expected = run(env, after)
    for name, array in state.items():
        np.testing.assert_array_equal(array, kept[name], err_msg=f"the env writes to its state's {name}")
    env.close()
    del env
    gc.collect()

    for fresh, cold in ((True, False), (False, False), (True, True)):
        other = make_env(config, 3, (99,))
        if not fresh:
            other.reset()
            run(other, actions_of(8, 5, 3))
        if cold:
            monkeypatch.setattr(nes_py, "_snapshots", nes_py._SnapshotCache(64))
        other.restore(through_a_file(state))
        assert {name: array.tobytes() for name, array in other.state().items()} == {
            name: array.tobytes() for name, array in state.items()
        }
        for a, b in zip(expected, run(other, after), strict=True):
            assert_same(a, b)
        other.close()
    assert sum(len(step.ended) for step in expected) >= 4


def test_a_restored_env_keeps_its_arrays_to_itself() -> None:
    env = ProbeVectorEnv(PROBE, 2, (0,))
    env.reset()
    state = env.state()
    kept = {name: array.copy() for name, array in state.items()}
    env.restore(state)
    run(env, actions_of(0, 5, 2))
    for name, array in state.items():
        np.testing.assert_array_equal(array, kept[name])
