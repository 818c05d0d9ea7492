"""Filmed play on the real ROM: every frame is the machine's own, and an episode played again the same one."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mario_dist.emulator import Emulator, make_emulator
from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.actions import action_names, joypad_bytes
from mario_dist.env.starts import level_start
from mario_dist.evaluation import EvalProtocol, Played, Player, best_played, evaluate
from mario_dist.nets import ActorCritic, NetworkConfig, build_network
from mario_dist.report.film import Look, film_episode, film_play
from mario_dist.report.overlay import GAP
from mario_dist.report.video import VideoWriter
from mario_dist.types import U8

ENV = EnvConfig(frame_size=(42, 42), noop_max=0, max_steps=24)
TOLERANCE = 6.0  # mean absolute difference that x264 stays below on the game's pictures
MOVED = 0.02  # mean absolute difference above which two of the machine's pictures show that Mario moved


@pytest.fixture
def network() -> ActorCritic:
    """A policy that draws evenly."""
    env = MarioVectorEnv(ENV, 1, (0,))
    network = build_network(NetworkConfig("small", 32), env.spec, seed=0)
    env.close()
    assert isinstance(network, ActorCritic)
    return network


@pytest.fixture
def runner(network: ActorCritic) -> ActorCritic:
    """A policy that runs to the right."""
    with torch.no_grad():
        network.policy.bias[action_names(ENV.actions).index("right+B")] = 1e4
    return network


def running(frames: int) -> list[U8]:
    """What a machine of our own draws while Mario runs."""
    joypad = joypad_bytes(ENV.actions)[action_names(ENV.actions).index("right+B")]
    machine = make_emulator("auto")
    machine.load(level_start("auto", "1-1", ""))
    machine.step(0)
    pictures = []
    for _ in range(frames):
        machine.step(int(joypad))
        pictures.append(machine.rgb())
    machine.close()
    return pictures


def watch(network: ActorCritic, look: Look, episodes: int, env: EnvConfig = ENV) -> list[U8]:
    shown: list[U8] = []

    def show(picture: U8) -> bool:
        shown.append(picture.copy())
        return True

    played = film_play(network, env, look, episodes=episodes, seed=3, greedy=False, show=show)
    assert len(played) == episodes
    return shown


@pytest.mark.parametrize("overlay", [False, True])
def test_every_picture_of_the_film_is_the_machines_own(runner: ActorCritic, overlay: bool) -> None:
    shown = watch(runner, Look(overlay=overlay, label="a run"), episodes=1)
    expected = running(24 * 4)
    assert len(shown) == len(expected)
    for picture, own in zip(shown, expected, strict=True):
        assert picture.shape == ((548, 512, 3) if overlay else (480, 512, 3))
        assert np.array_equal(picture[:480:2, ::2], own)


def test_a_decoded_film_of_a_moving_mario_moves_as_the_machine_did(
    runner: ActorCritic, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, scale=1) as video:
        for picture in watch(runner, Look(overlay=True), episodes=1):
            video.add(picture)
    with av.open(str(path)) as container:
        decoded = [f.to_ndarray(format="rgb24")[:480:2, ::2].astype(float) for f in container.decode(video=0)]
    expected = [picture.astype(float) for picture in running(24 * 4)]
    assert len(decoded) == len(expected)
    assert expected[0].std() > 30, "the first picture shows the level"
    for frame, own in zip(decoded, expected, strict=True):
        assert np.abs(frame - own).mean() < TOLERANCE
    moved = [i for i, (a, b) in enumerate(pairwise(expected)) if np.abs(a - b).mean() > MOVED]
    assert len(moved) > 70
    assert all(np.abs(decoded[i + 1] - decoded[i]).max() > 8 for i in moved), "no frame comes twice"
    # Each decoded frame is nearer to its own moment's picture than to those beside it, once Mario runs.
    for i in range(60, 90):
        distance = [np.abs(decoded[i] - expected[i + d]).mean() for d in (-1, 0, 1)]
        assert distance[1] == min(distance)


@pytest.mark.parametrize("sent", [0, 1])
def test_a_grid_shows_every_frame_of_a_lanes_way_through_a_pipe(
    sent: int, network: ActorCritic, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sent(MarioVectorEnv):
        def reset(self) -> U8:
            frame_NHW = super().reset()
            self._lanes.emulators[sent].poke(0x0E, 2)
            return frame_NHW

    monkeypatch.setattr("mario_dist.report.film.MarioVectorEnv", Sent)
    through = len(watch(network, Look(1, 2), episodes=2, env=dataclasses.replace(ENV, skip_transitions=True)))
    assert through > 24 * 4 + 200
    assert (through - 1) % 4 == 0


def first_episodes(network: ActorCritic, env: EnvConfig, lanes: int) -> list[list[U8]]:
    """Each lane's pictures until its first episode ends, watched without any of the film's code."""
    pictures: list[list[U8]] = [[] for _ in range(lanes)]
    length: dict[int, int] = {}

    def on_frame(lane: int, emulator: Emulator) -> None:
        pictures[lane].append(emulator.rgb())

    vector = MarioVectorEnv(env, lanes, (3,), on_frame=on_frame)
    player = Player(network, vector, seed=3, greedy=False)
    while len(length) < lanes:
        for episode in player.step().ended:
            length.setdefault(episode.lane, episode.length)
    vector.close()
    return [pictures[lane][: length[lane] * 4] for lane in range(lanes)]


def test_a_grids_lanes_play_together_and_stay_as_they_ended(network: ActorCritic) -> None:
    env = dataclasses.replace(ENV, noop_max=30, max_steps=80, stall_steps=12)
    lanes = first_episodes(network, env, 4)
    shown = watch(network, Look(2, 2), episodes=4, env=env)
    assert len(shown) == max(len(own) for own in lanes) + 1, "and one on which all have ended"
    assert len({len(own) for own in lanes}) > 1, "the lanes end at different times"
    for lane, own in enumerate(lanes):
        y, x = lane // 2 * (480 + GAP), lane % 2 * (512 + GAP)
        cells = [picture[y : y + 480, x : x + 512] for picture in shown]
        for cell, picture in zip(cells, own, strict=False):
            assert np.array_equal(cell[::2, ::2], picture)
        for cell in cells[len(own) :]:
            assert np.array_equal(cell, cells[-1])
            assert cell.mean() < own[-1].mean() * 0.6


def test_more_episodes_than_lanes_and_too_few(network: ActorCritic) -> None:
    env = dataclasses.replace(ENV, max_steps=3)
    assert len(watch(network, Look(1, 2), episodes=5, env=env)) == 3 * 3 * 4 + 1
    with pytest.raises(ValueError, match="at least 2 episodes"):
        watch(network, Look(1, 2), episodes=1)


def test_a_show_that_was_closed_ends_the_play(network: ActorCritic) -> None:
    shown: list[U8] = []

    def show(picture: U8) -> bool:
        shown.append(picture)
        return len(shown) < 5

    assert film_play(network, ENV, Look(), episodes=9, seed=0, greedy=False, show=show) == []
    assert len(shown) == 5
    protocol = EvalProtocol(("1-1",), episodes=2, max_steps=20)
    wanted = Played("1-1", 0, "truncated", 0, 20)
    shown.clear()
    assert film_episode(network, ENV, protocol, wanted, "", show) is None
    assert len(shown) == 5


@pytest.mark.parametrize("index", [0, 17, 53])
def test_a_reports_episode_is_filmed_from_its_first_frame_to_its_end(
    network: ActorCritic, index: int
) -> None:
    """In the first block, as a lane's second episode, and in the second block."""
    protocol = EvalProtocol(("1-1",), episodes=54, seed=5, max_steps=60, stall_steps=25)
    report = evaluate(network, ENV, protocol)
    played = report.per_level["1-1"]["played"]
    assert isinstance(played, dict)
    wanted = Played("1-1", index, *(played[key][index] for key in ("end", "x_pos", "agent_steps")))
    shown: list[U8] = []

    def show(picture: U8) -> bool:
        shown.append(picture)
        return True

    episode = film_episode(network, ENV, protocol, wanted, "a run", show)
    assert episode is not None
    assert wanted.is_of(episode)
    assert len(shown) == episode.length * 4
    assert best_played(report.per_level).x_pos == report.x_pos["max"]
    other = dataclasses.replace(wanted, x_pos=wanted.x_pos + 1)
    with pytest.raises(RuntimeError, match="played again"):
        film_episode(network, ENV, protocol, other, "a run", show)
