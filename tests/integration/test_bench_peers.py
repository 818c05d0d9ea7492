"""The peers really train: each one once, in its own process, on a workload of 32 agent steps."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mario_dist.bench import peers
from mario_dist.bench.peers import DQNSettings, PeerResult, PeerSettings, run_peer
from mario_dist.bench.peers.gym_stack import make_env
from mario_dist.bench.peers.process import run_in_child
from mario_dist.bench.peers.settings import Iteration, summarise
from mario_dist.errors import UserError

TINY = PeerSettings(n_envs=2, n_steps=16, minibatch=16, epochs=1, iterations=1, warmup_iterations=0)

TINY_DQN = DQNSettings(
    n_envs=2, n_steps=16, batch=16, capacity=512, warmup=64, iterations=1, replay_ratio=1.0, target_every=4
)


@pytest.mark.parametrize("name", sorted(peers.PEERS))
@pytest.mark.usefixtures("beside_other_rays")
def test_a_peer_trains_and_is_timed(name: str) -> None:
    result = run_peer(name, TINY, timeout_s=280)
    assert result.agent_steps_per_s > 0
    assert len(result.per_iteration) == 1
    # RLlib ends an iteration at a whole vector step, so it may make a few more.
    assert TINY.batch <= result.env_steps <= TINY.batch + 2 * TINY.n_envs
    seconds = result.seconds["rollout"] + result.seconds["learn"]
    assert result.agent_steps_per_s == pytest.approx(result.env_steps / seconds)
    assert result.detail["version"]


@pytest.mark.parametrize("name", peers.DQN_PEERS)
@pytest.mark.usefixtures("beside_other_rays")
def test_a_peers_dqn_trains_at_the_replay_ratio(name: str) -> None:
    result = run_peer(name, TINY_DQN, timeout_s=280)
    assert result.agent_steps_per_s > 0
    assert result.env_steps >= TINY_DQN.turn
    assert result.updates_per_learn_s
    assert result.seconds["learn"] > 0.01, "it learned"


def test_ours_runs_the_peers_q_learning_workload() -> None:
    result = run_in_child("mario_dist.bench.ours_apex", TINY_DQN, 280)
    assert result.env_steps == TINY_DQN.turn
    assert result.updates_per_learn_s
    assert result.seconds["learn"] > 0.01


def test_a_replay_ratio_must_make_whole_updates() -> None:
    assert (DQNSettings().turn, DQNSettings().updates) == (512, 2)
    assert DQNSettings.from_json(TINY_DQN.to_json()) == TINY_DQN
    with pytest.raises(ValueError, match=r"makes 0\.20 updates of 256 from 512 steps"):
        DQNSettings(replay_ratio=0.1)
    with pytest.raises(UserError, match="sb3_vectorenv has no DQN; sb3 and rllib have"):
        run_peer("sb3_vectorenv", DQNSettings())


def test_the_first_observation_is_our_kind_of_picture() -> None:
    env = make_env("1-1")
    try:
        observation, info = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert observation.shape == (4, 84, 84)
        assert observation.dtype == np.uint8
        # 32 of 240 rows are 11.2 of 84: row 11 mixes black with the game's first rows.
        assert not observation[:, :11].any()
        assert observation[:, 12:].std() > 10
        assert (observation == observation[0]).all()
        assert set(info) == {"x_pos_max", "flag_get"}
    finally:
        env.close()


def test_a_step_repeats_the_action_and_moves_the_stack() -> None:
    env, frame_by_frame = make_env("1-1"), make_env("1-1", frame_skip=1)
    try:
        first, _ = env.reset(seed=0)
        kept = first.copy()
        frame_by_frame.reset(seed=0)
        for _ in range(10):
            observation, reward, *_ = env.step(np.int64(1))
            single = [frame_by_frame.step(1) for _ in range(4)]
            assert reward == sum(step[1] for step in single)
            np.testing.assert_array_equal(observation[-1], single[-1][0][-1])
        np.testing.assert_array_equal(first, kept)  # an observation handed out is never written again
    finally:
        env.close()
        frame_by_frame.close()


def test_the_summary_takes_medians_and_counts_every_step() -> None:
    result = summarise([Iteration(10, 1.0, 1.0), Iteration(12, 2.0, 1.0), Iteration(10, 9.0, 1.0)], {"a": 1})
    assert result.per_iteration == (5.0, 4.0, 1.0)
    assert result.agent_steps_per_s == 4.0
    assert result.env_steps == 32
    assert result.seconds == {"rollout": 2.0, "learn": 1.0}
    assert PeerResult.from_json(result.to_json()) == result


def test_settings_survive_json_and_refuse_nonsense() -> None:
    assert PeerSettings.from_json(TINY.to_json()) == TINY
    with pytest.raises(ValueError, match="no level '9-1'"):
        PeerSettings(level="9-1")
    with pytest.raises(ValueError, match="minibatch must be in"):
        PeerSettings(n_envs=1, n_steps=16, minibatch=17)


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "sb3", "no_such_package")
    with pytest.raises(UserError, match="install the dev group: uv sync"):
        run_peer("sb3", TINY)
    with pytest.raises(UserError, match="no peer 'cleanrl'; peers are sb3, rllib"):
        run_peer("cleanrl", TINY)


@pytest.fixture
def fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module that ``run_in_child`` can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "fake_peer.py").write_text(source)
        return "fake_peer"

    return write


def test_what_a_peer_prints_does_not_spoil_its_answer(fake_peer) -> None:
    result = run_in_child(
        fake_peer(
            "import os, subprocess\n"
            "from mario_dist.bench.peers.process import child_main\n"
            "from mario_dist.bench.peers.settings import Iteration, PeerSettings, summarise\n"
            "def measure(settings):\n"
            "    print('noise'); subprocess.run(['echo', 'more noise']); os.write(1, b'raw noise')\n"
            "    return summarise([Iteration(settings.batch, 1.0, 1.0)], {})\n"
            "child_main(measure, PeerSettings)\n"
        ),
        TINY,
        timeout_s=60,
    )
    assert result.agent_steps_per_s == 16


def test_a_failing_peer_says_why(fake_peer) -> None:
    with pytest.raises(UserError, match=r"fake_peer failed with exit code 1: RuntimeError: out of luck$"):
        run_in_child(fake_peer("raise RuntimeError('out of luck')"), TINY, timeout_s=60)


def test_a_peer_that_hangs_is_ended_with_its_children(fake_peer, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    source = (
        "import subprocess, sys, time, pathlib\n"
        f"child = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid)); time.sleep(600)\n"
    )
    with pytest.raises(UserError, match="did not finish within 5 s"):
        run_in_child(fake_peer(source), TINY, timeout_s=5)
    status = Path(f"/proc/{pid_file.read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"
