"""How episodes of the real game end, and what their records say."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.game import decode
from mario_dist.types import I32, EnvStep, Episode

NOOP, RIGHT = 0, 1


def mario(**changes: object) -> MarioVectorEnv:
    config = EnvConfig(**{"noop_max": 0, "stall_steps": 0, "max_steps": 0, **changes})  # type: ignore[arg-type]
    env = MarioVectorEnv(config, 1, (0,))
    env.reset()
    return env


def poke(env: MarioVectorEnv, address: int, *values: int) -> None:
    for offset, value in enumerate(values):
        env._lanes.emulators[0].poke(address + offset, value)


def to_the_end(env: MarioVectorEnv, action: int, limit: int = 200) -> tuple[Episode, EnvStep, list[float]]:
    rewards: list[float] = []
    for _ in range(limit):
        step = env.step(np.array([action]))
        rewards.append(float(step.reward_N[0]))
        if step.ended:
            assert bool(step.terminated_N[0]) != bool(step.truncated_N[0])
            return step.ended[0], step, rewards
    raise AssertionError(f"the episode did not end within {limit} steps")


def test_death_by_the_first_goomba() -> None:
    began = time.monotonic()
    env = mario()  # its first episode begins in there
    episode, step, rewards = to_the_end(env, RIGHT)
    assert episode.end == "death"
    assert step.terminated_N[0]
    assert 280 <= episode.x_pos_max <= 310
    assert episode.length == len(rewards) == 41
    assert episode.episode_return == pytest.approx(sum(rewards), abs=1e-4)
    assert rewards[-1] == pytest.approx(-2.5, abs=0.7)
    assert sum(rewards) == pytest.approx((episode.x_pos_max - 40) / 10 - 2.5, abs=1e-3)
    assert 0 < episode.seconds <= time.monotonic() - began
    assert 390 < episode.time_left < 400
    assert (episode.score, episode.coins, episode.life, episode.status) == (0, 0, 2, "small")
    assert not episode.flag_get
    env.close()


def test_stalling() -> None:
    env = mario(stall_steps=6, max_steps=6)
    episode, step, _ = to_the_end(env, NOOP)
    assert episode.end == "stall", "a stall goes before the step limit"
    assert step.terminated_N[0]
    assert episode.length == 6
    assert episode.x_pos_max == 40
    env.close()


def test_a_new_best_x_ends_the_stall() -> None:
    env = mario(stall_steps=6)
    for action in [NOOP] * 4 + [RIGHT] * 4:  # from standing, four frames are needed for the first pixel
        assert not env.step(np.array([action])).ended
    episode, _, _ = to_the_end(env, NOOP)
    assert episode.end == "stall"
    assert episode.length >= 4 + 4 + 6
    env.close()


def test_only_a_new_best_x_counts_against_a_stall() -> None:
    """Back and forth behind it is none, though every other step goes right."""
    env = mario(stall_steps=25, actions=(("right",), ("left",)))
    for _ in range(16):
        env.step(np.array([0]))
    best, steps, ended = 0, 0, None
    while ended is None:
        state = decode(env._lanes.emulators[0].ram[None])
        best = max(best, int(state.x_pos[0]))
        steps += 1
        assert steps <= 25 + 8, "Mario slides on for a little, and no more"
        ended = next(iter(env.step(np.array([1 if steps <= 10 or steps % 12 < 6 else 0])).ended), None)
    assert ended.end == "stall"
    assert ended.length == 16 + steps
    assert ended.x_pos_max == best, "the best, not the last"
    env.close()


def test_a_stall_is_counted_from_the_episodes_start() -> None:
    env = mario(stall_steps=6)
    for _ in range(12):
        assert not env.step(np.array([RIGHT])).ended
    poke(env, 0x0E, 11)
    assert to_the_end(env, RIGHT)[0].end == "death"
    episode, _, _ = to_the_end(env, NOOP)
    assert (episode.end, episode.length) == ("stall", 6)
    env.close()


def test_the_wrong_path_of_a_maze() -> None:
    """4-4 played at random, going on where Mario dies, until it sends him back by 1,024 pixels."""
    settings = {"levels": ("4-4",), "frame_skip": 8, "frame_size": (64, 64), "rewind": 0.9}

    def played(**changes: bool) -> Iterator[tuple[I32, EnvStep]]:
        """How far each lane went, and what the step said."""
        env = MarioVectorEnv(EnvConfig(**settings, **changes), 16, (3,))  # type: ignore[arg-type]
        env.reset()
        rng = np.random.default_rng(0)
        for _ in range(200):
            before_N = env.x_pos_N.copy()
            step = env.step(rng.choice(7, 16, p=[0.05, 0.15, 0.25, 0.15, 0.3, 0.05, 0.05]))
            yield env.x_pos_N - before_N, step
        env.close()

    moved_N, goes_on, ends = next(
        (moved_N, goes_on, ends)
        for (moved_N, goes_on), (_, ends) in zip(played(), played(end_astray=True), strict=True)
        if (moved_N[~goes_on.terminated_N] < -64).any()
    )
    looped_N = (moved_N < -64) & ~goes_on.terminated_N
    assert np.abs(moved_N[looped_N] + 1024).max() <= 3 * 8
    np.testing.assert_array_equal(ends.terminated_N, goes_on.terminated_N | looped_N)
    assert not ends.truncated_N.any()


def test_a_wrong_path_ends_an_episode_as_astray() -> None:
    env = mario(end_astray=True, stall_steps=1, max_steps=1)
    assert env._state is not None
    env._state.x_raw[0] += 1024  # where he was before the maze set him back
    episode, step, _ = to_the_end(env, NOOP)
    assert (episode.end, episode.length) == ("astray", 1)
    assert step.terminated_N[0]
    env.close()


def test_a_warp_zone_ends_an_episode_as_astray() -> None:
    for end_astray, end in ((True, "astray"), (False, "stall")):
        env = mario(end_astray=end_astray, stall_steps=1)
        poke(env, 0x6D6, 4)
        assert to_the_end(env, NOOP)[0].end == end
        env.close()


def test_truncation() -> None:
    env = mario(max_steps=7)
    for _ in range(2):
        episode, step, _ = to_the_end(env, NOOP)
        assert episode.end == "truncated"
        assert step.truncated_N[0]
        assert not step.terminated_N[0]
        assert episode.length == 7
    env.close()


def test_limits_of_zero_are_off() -> None:
    env = mario(frame_skip=1)
    for _ in range(340):
        assert not env.step(np.array([NOOP])).ended
    env.close()


def test_time() -> None:
    env = mario()
    poke(env, 0x7F8, 0, 0, 1)
    episode, step, rewards = to_the_end(env, NOOP)
    assert episode.end == "time"
    assert step.terminated_N[0]
    assert episode.time_left == 0
    assert episode.length <= 12
    assert rewards[-1] == pytest.approx(-2.5)
    env.close()


def test_the_flag() -> None:
    env = mario()
    for _ in range(5):
        env.step(np.array([RIGHT]))
    poke(env, 0x770, 2)
    episode, step, rewards = to_the_end(env, NOOP)
    assert episode.end == "flag"
    assert episode.flag_get
    assert step.terminated_N[0]
    assert episode.length == 6
    assert rewards[-1] >= 5.0
    env.close()


def test_another_levels_flag_does_not_clear_this_one() -> None:
    env = mario(levels=("1-2",))
    poke(env, 0x75F, 3)
    poke(env, 0x770, 2)
    episode, step, _ = to_the_end(env, NOOP)
    assert (episode.end, episode.flag_get, episode.world) == ("astray", False, 4)
    assert step.terminated_N[0]
    env.close()


def test_the_flag_wins() -> None:
    env = mario(stall_steps=1, max_steps=1)
    poke(env, 0x770, 2)
    poke(env, 0x0E, 11)
    episode, _, rewards = to_the_end(env, NOOP)
    assert (episode.end, episode.length) == ("flag", 1)
    assert rewards == [5.0]
    env.close()


def test_death_goes_before_the_limits() -> None:
    env = mario(stall_steps=1, max_steps=1)
    poke(env, 0x0E, 11)
    episode, _, _ = to_the_end(env, NOOP)
    assert (episode.end, episode.length) == ("death", 1)
    env.close()


def test_an_episode_says_what_the_game_showed() -> None:
    env = mario(max_steps=3)
    env.step(np.array([RIGHT]))
    poke(env, 0x7DE, 0, 1, 2, 3, 4, 0)
    poke(env, 0x7ED, 4, 2)
    poke(env, 0x756, 2)
    poke(env, 0x75A, 5)
    episode, _, rewards = to_the_end(env, RIGHT)
    assert (episode.score, episode.coins, episode.status, episode.life) == (12340, 42, "fireball", 5)
    assert (episode.lane, episode.level, episode.world, episode.stage) == (0, "1-1", 1, 1)
    assert episode.end == "truncated"
    assert 12 < sum(rewards) < 20, "the score pays"
    # The next episode knows nothing of it.
    episode, _, _ = to_the_end(env, NOOP)
    assert (episode.score, episode.coins, episode.status, episode.life) == (0, 0, "small", 2)
    assert episode.x_pos_max == 40
    assert episode.episode_return == 0.0
    env.close()


def test_reset_starts_all_over() -> None:
    env = mario(max_steps=6)
    first = env.reset().copy()
    for _ in range(4):
        env.step(np.array([RIGHT]))
    np.testing.assert_array_equal(env.reset(), first)
    episode, _, _ = to_the_end(env, NOOP)
    assert episode.length == 6
    assert episode.x_pos_max == 40
    env.close()
