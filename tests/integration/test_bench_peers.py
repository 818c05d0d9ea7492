"""The peers really train: each one once, in its own process, on a workload of 32 agent steps.

Those that take a minute, most of it the peer's own start, are marked ``peers`` and run by `pytest -m peers`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mario_dist.algos.impala import ImpalaConfig
from mario_dist.bench import peers
from mario_dist.bench.ours_impala import Row, core_seconds, marks, run_config
from mario_dist.bench.peers import DQNSettings, ImpalaSettings, PeerResult, PeerSettings, check_peer, run_peer
from mario_dist.bench.peers.gym_stack import make_env
from mario_dist.bench.peers.process import run_in_child
from mario_dist.bench.peers.settings import Iteration, Mark, measured, summarise, windows
from mario_dist.errors import UserError

TINY = PeerSettings(n_envs=2, n_steps=16, minibatch=16, epochs=1, iterations=1, warmup_iterations=0)

TINY_DQN = DQNSettings(
    n_envs=2, n_steps=16, batch=16, capacity=512, warmup=64, iterations=1, replay_ratio=1.0, target_every=4
)


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.peers) if name == "rllib" else name


TINY_IMPALA = ImpalaSettings(n_envs=1, n_steps=16, iterations=1, warmup_s=0.0, seconds=0.01)


@pytest.mark.parametrize("name", [slow(name) for name in sorted(peers.MODULES["PPO"])])
@pytest.mark.usefixtures("beside_other_rays")
def test_a_peer_trains_and_is_timed(name: str) -> None:
    result = run_peer(name, TINY, timeout_s=280)
    assert result.agent_steps_per_s > 0
    assert len(result.per_iteration) == 1
    # RLlib ends an iteration at a whole vector step, so it may make a few more.
    assert TINY.turn <= result.env_steps <= TINY.turn + 2 * TINY.n_envs
    seconds = result.seconds["rollout"] + result.seconds["learn"]
    assert result.agent_steps_per_s == pytest.approx(result.env_steps / seconds)
    assert result.detail["version"]


@pytest.mark.parametrize("name", sorted(peers.MODULES["DQN"]))
@pytest.mark.usefixtures("beside_other_rays")
@pytest.mark.peers
def test_a_peers_dqn_trains_at_the_replay_ratio(name: str) -> None:
    result = run_peer(name, TINY_DQN, timeout_s=280)
    assert result.agent_steps_per_s > 0
    assert result.env_steps >= TINY_DQN.turn
    assert result.updates_per_learn_s
    assert result.seconds["learn"] > 0.01, "it learned"


@pytest.mark.usefixtures("beside_other_rays")
@pytest.mark.peers
def test_a_peers_impala_trains_and_counts_what_it_learned_from() -> None:
    result = run_peer("rllib", TINY_IMPALA, timeout_s=280)
    assert result.agent_steps_per_s > 0
    # A vector step more or fewer, since RLlib counts none where an episode begins.
    assert abs(result.env_steps - TINY_IMPALA.turn) <= 2 * TINY_IMPALA.n_envs
    assert result.seconds["learn"] > 0.01
    assert result.detail["version"]


def test_ours_has_the_peers_impala_workload() -> None:
    slow = run_config(ImpalaSettings(emulator="nes-py"))
    assert slow.env.emulator == "nes-py"
    assert slow.rollout.actors * slow.rollout.lanes == 16
    config = run_config(ImpalaSettings(torso="small"))
    assert config.network.torso == "small"
    rollout = config.rollout
    assert (rollout.actors, rollout.lanes, rollout.unroll_length) == (1, 16, 32)
    algo = config.algo
    assert isinstance(algo, ImpalaConfig)
    # One gradient step a batch, and a batch is an unroll, as RLlib's.
    assert (algo.batch_unrolls, algo.minibatch, algo.reuse, algo.clip) == (1, 0, 1, None)
    assert (algo.rho_clip, algo.c_clip, algo.vtrace_lambda) == (1.0, 1.0, 1.0)
    assert (algo.gamma, algo.lr, algo.max_grad_norm) == (0.9, (5e-4, 5e-4), 40.0)


def test_windows_begin_after_the_warm_up_and_end_with_a_gradient_step() -> None:
    steps = [Mark(at_s=3.0 * i, agent_steps=100 * i, learn_s=1.0 * i) for i in range(1, 12)]
    pairs = windows(steps, ImpalaSettings(warmup_s=7.0, seconds=5.0, iterations=3))
    assert [(first.at_s, last.at_s) for first, last in pairs] == [(12.0, 18.0), (18.0, 24.0), (24.0, 30.0)]
    assert measured(pairs)[0] == Iteration(agent_steps=200, rollout_s=4.0, learn_s=2.0)
    assert windows(steps[:3], ImpalaSettings()) == []


def test_what_was_dropped_does_not_count_and_what_is_not_learning_is_rollout() -> None:
    rows = [
        Row(32, 1.0, {"learner_s": 0.5}),
        Row(64, 3.0, {"learner_s": 1.5, "dropped_steps": 0.0}),
        Row(128, 4.0, {"learner_s": 0.25, "dropped_steps": 32.0}),
    ]
    assert marks(rows) == [Mark(1.0, 32, 0.0), Mark(3.0, 64, 1.5), Mark(4.0, 96, 1.75)]


def test_core_seconds_add_up_to_all_cores_for_all_the_time() -> None:
    values = {
        "worker_environment_cpu_s": 0.3,
        "worker_inference_cpu_s": 0.2,
        "worker_other_cpu_s": 0.1,
        "learn_cpu_s": 0.5,
        "cores_busy": 1.5,
    }
    rows = [Row(100, 1.0, values), Row(300, 3.0, values), Row(400, 4.0, values)]
    parts = core_seconds(rows, unroll=100, cores=2)
    # 300 agent steps in 3 s: three unrolls, two learner steps, 4.5 of 6 core seconds busy.
    assert parts == pytest.approx(
        {
            "emulation": 3.0,
            "inference": 2.0,
            "serialisation": 1.0,
            "learning": 1.0 / 0.3,
            "other_processes": (4.5 - 1.8 - 1.0) / 0.3,
            "idle": 1.5 / 0.3,
        }
    )
    del values["worker_other_cpu_s"]
    assert core_seconds(rows, unroll=100, cores=2) is None


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
        check_peer("sb3_vectorenv", DQNSettings())
    with pytest.raises(UserError, match=r"the peer sb3 has no IMPALA; rllib has$"):
        check_peer("sb3", ImpalaSettings())


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
    with pytest.raises(ValueError, match="torch_threads and seed must not be negative"):
        DQNSettings(seed=-1)
    assert ImpalaSettings.from_json(TINY_IMPALA.to_json()) == TINY_IMPALA
    assert ImpalaSettings().turn == 512
    with pytest.raises(ValueError, match="seconds must be positive"):
        ImpalaSettings(seconds=0.0)
    with pytest.raises(ValueError, match="n_steps and iterations must be at least 1"):
        ImpalaSettings(n_steps=0)
    with pytest.raises(TypeError, match="minibatch"):
        ImpalaSettings.from_json('{"minibatch": 3}')


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
            "    return summarise([Iteration(settings.turn, 1.0, 1.0)], {})\n"
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

    def gone() -> bool:
        try:
            return status.read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    # On a busy machine a killed process takes a moment.
    until = time.monotonic() + 10.0
    while not gone() and time.monotonic() < until:
        time.sleep(0.05)
    assert gone()
