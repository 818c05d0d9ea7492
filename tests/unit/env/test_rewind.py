"""After a death a lane may go on from shortly before it."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.game import GameState, decode
from mario_dist.env.rewind import Moment, Moments
from mario_dist.types import EnvStep

RIGHT = 1
# Who only walks right dies at the first enemy.
WALK = EnvConfig(actions=(("right",),), noop_max=9, rewind=0.8, stall_steps=60)


def walk(env: MarioVectorEnv, steps: int) -> list[EnvStep]:
    action_N = np.zeros(env.n_lanes, dtype=np.int64)
    seen = []
    for _ in range(steps):
        step = env.step(action_N)
        ended = tuple(dataclasses.replace(episode, seconds=0.0) for episode in step.ended)
        copies = (step.frame_NHW.copy(), step.reward_N.copy(), step.terminated_N.copy(), step.truncated_N)
        seen.append(EnvStep(*copies, step.final_frame_FHW.copy(), step.final_lane_F.copy(), ended))
    return seen


def test_a_lane_goes_back_from_where_it_died_and_its_practice_is_no_episode() -> None:
    env = MarioVectorEnv(WALK, 4, (1,))
    env.reset()
    deaths = went_back = 0
    x_N: NDArray[np.int32] = env.x_pos_N.copy()
    for _ in range(600):
        (step,) = walk(env, 1)
        for lane in np.flatnonzero(step.terminated_N).tolist():
            deaths += 1
            x = int(env.x_pos_N[lane])
            if env._practises_N[lane]:
                went_back += 1
                assert 40 < x < x_N[lane] + 12, "at a place before its death, after the start"
            else:
                assert x < 60, "at the start"
        assert len(step.ended) <= step.final_lane_F.size
        x_N = env.x_pos_N.copy()
    env.close()
    assert deaths > 40
    # A lane that has used up its moments starts anew.
    assert 0.3 < went_back / deaths < 0.95


def test_a_lane_that_went_back_knows_what_it_knew_then() -> None:
    """Best and landed x, and those of an area that is not where x_pos counts from."""
    env = MarioVectorEnv(WALK, 4, (1,))
    env.reset()
    assert env._state is not None
    env._state.x_offset[:] = 1500
    kept: list[Moment] = []
    go_back = env._moments.go_back
    env._moments.go_back = lambda *of: kept.append(go_back(*of)) or kept[-1]  # type: ignore[func-returns-value, method-assign]
    elsewhere = 0
    for _ in range(300):
        kept.clear()
        (step,) = walk(env, 1)
        (lanes,) = np.nonzero(step.terminated_N & env._practises_N)
        if len(lanes) != 1 or len(kept) != 1:
            continue
        (lane,) = lanes.tolist()
        expected = decode(env._ram_NR[lane : lane + 1], kept[0].game)
        np.testing.assert_array_equal(env._state.lane(lane).packed(), expected.packed())
        if kept[0].game.x_offset[0] == 1500:
            elsewhere += 1
            assert int(env._state.x_raw_best[lane]) < 1500 < int(env._state.x_best[lane])
    env.close()
    assert elsewhere > 3


def test_every_reported_episode_began_at_the_start() -> None:
    env = MarioVectorEnv(WALK, 4, (2,))
    env.reset()
    ended = [episode for step in walk(env, 600) for episode in step.ended]
    env.close()
    lengths = {episode.length for episode in ended}
    assert len(ended) >= 4
    # From the start it takes about 60 steps to the first enemy; from a moment before it at most 24 moments.
    assert min(lengths) > 30, lengths


def test_a_moment_is_forgotten_with_all_after_it_and_each_of_the_newest_is_as_likely() -> None:
    game = decode(np.zeros((1, 2048), dtype=np.uint8))
    counts = np.zeros(24)
    for seed in range(4000):
        moments = Moments(1)
        for number in range(30):
            moments.keep(0, Moment(bytes([number]), game))
        moment = moments.go_back(0, np.random.default_rng(seed))
        assert moment is not None
        drawn = moment.machine[0]
        counts[drawn - 6] += 1
        left = len(moments.state()) // 2
        assert left == drawn - 6
    assert (counts[:16] == 0).all()
    assert counts[16:].min() > 400
    assert counts[16:].max() < 600


def test_without_a_moment_nobody_goes_back() -> None:
    moments = Moments(2)
    rng = np.random.default_rng(0)
    assert moments.go_back(0, rng) is None
    moments.keep(1, Moment(b"a", decode(np.zeros((1, 2048), dtype=np.uint8))))
    moments.forget(1)
    assert moments.go_back(1, rng) is None


def test_a_restored_environment_goes_back_to_the_same_moments() -> None:
    env, other = MarioVectorEnv(WALK, 3, (3,)), MarioVectorEnv(WALK, 3, (4,))
    env.reset()
    other.reset()
    walk(env, 130)
    walk(other, 77)
    other.restore(env.state())
    for mine, theirs in zip(walk(env, 250), walk(other, 250), strict=True):
        np.testing.assert_array_equal(mine.frame_NHW, theirs.frame_NHW)
        np.testing.assert_array_equal(mine.reward_N, theirs.reward_N)
        assert mine.ended == theirs.ended
    env.close()
    other.close()


def test_a_state_from_before_there_was_rewinding_is_restored() -> None:
    env = MarioVectorEnv(dataclasses.replace(WALK, rewind=0.0), 2, (3,))
    env.reset()
    walk(env, 70)
    old = {name: array for name, array in env.state().items() if name != "practises"}
    assert not [name for name in old if name.startswith("moments.")], "kept without being asked"
    env.restore(old)
    env.close()


def test_without_rewinding_a_seed_gives_what_it_gave() -> None:
    """No random number is drawn for what is off."""
    off = dataclasses.replace(WALK, rewind=0.0)
    env, plain = MarioVectorEnv(off, 2, (5,)), MarioVectorEnv(dataclasses.replace(off), 2, (5,))
    env.reset()
    plain.reset()
    before = [str(rng.bit_generator.state) for rng in env._rngs]
    ended = sum(step.final_lane_F.size for step in walk(env, 20))
    assert ended == 0
    assert [str(rng.bit_generator.state) for rng in env._rngs] == before
    env.close()
    plain.close()


def test_a_packed_state_comes_back() -> None:
    rng = np.random.default_rng(0)
    state = decode(rng.integers(0, 10, size=(3, 2048)).astype(np.uint8))
    again = GameState.unpacked(state.packed())
    for name, array in state.to_arrays("").items():
        assert array.dtype == again.to_arrays("")[name].dtype
        np.testing.assert_array_equal(array, again.to_arrays("")[name])
    one = state.lane(1)
    assert one.x_raw.tolist() == [state.x_raw[1]]
    assert one.x_raw.base is None or one.x_raw.base is not state.x_raw


@pytest.mark.parametrize("rewind", [-0.1, 1.0])
def test_a_chance_that_is_none_is_refused(rewind: float) -> None:
    with pytest.raises(ValueError, match="rewind"):
        EnvConfig(rewind=rewind)
