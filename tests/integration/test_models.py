"""From training to champion and back: real PostgreSQL, a real MLflow server, its UI in a real browser."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.answers import answer, ok, refused
from support.browser import Browser, find_browser
from support.commands import Result
from support.mlflow_ui import set_alias, shown_aliases
from support.servers import MLflowServer

from mario_dist.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mario_dist.registry import ModelRegistry, Reference
from mario_dist.store import RunStore

REPO = Path(__file__).parents[2]
SCREENSHOTS = os.environ.get("MARIO_DIST_SCREENSHOTS")
"""Where to keep the pictures for the docs."""
Here = Callable[..., Result]
SHORT = (
    "total_steps=256",
    "rollout.lanes=4",
    "rollout.unroll_length=64",
    "evaluation.every_steps=0",
    "stop.clear_rate=null",
)


def history(here: Here, model: str) -> list[tuple[str, int | None, int | None, bool, str]]:
    rows = answer(here("models", "history", model, "--json"))
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    names = ("event", "from_version", "to_version", "moved", "verdict")
    return [tuple(row[name] for name in names) for row in rows]  # type: ignore[misc]


def other_network(tmp_path: Path) -> Path:
    """A checkpoint like the zoo's, with another network in it."""
    state = load_checkpoint(REPO / "mario_dist/zoo/1-1")
    rng = np.random.default_rng(0)
    arrays = {
        name: (array + rng.normal(0.0, 0.1, array.shape)).astype(array.dtype)
        for name, array in state.arrays.items()
    }
    return save_checkpoint(tmp_path / "other", 7, TrainState(arrays, state.meta))


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome")
def test_from_training_to_champion_in_the_ui_and_back(
    model: str, here: Here, server: MLflowServer, tmp_path: Path
) -> None:
    ok(here("train", "configs/smoke.yaml"))
    (trained,) = answer(here("models", "register", "latest", "episodes=2", "--json"))
    assert (trained["target"], trained["new"]) == (f"models:/{model}/1", True)
    assert trained["tags"]["mario_dist.kind"] == "best and final"
    run = answer(here("runs", "show", "latest", "--json"))
    assert trained["tags"]["mario_dist.run_id"] == run["id"]
    assert trained["tags"]["mario_dist.git_commit"] == run["git_commit"]
    (zoo,) = answer(here("models", "register", "zoo:1-1", "episodes=2", "--json"))
    assert zoo["target"] == f"models:/{model}/2"

    says = refused(here("models", "promote", model, "1", "episodes=2"))
    assert "is not promoted: it clears 0% of 2 episodes, and the gate asks for 50%" in says
    ok(here("models", "promote", model, "1", "episodes=2", "--force", "--reason", "nobody else is there"))
    assert ok(here("models", "watch", model, "episodes=2", "--once")) == ""

    with Browser(find_browser() or "", tmp_path / "profile") as browser:
        set_alias(browser, server.url, model, 2, "champion")
        assert shown_aliases(browser) == {"champion": 2}
        picture = Path(SCREENSHOTS or tmp_path) / "mlflow-champion.png"
        browser.screenshot(picture)
        assert picture.stat().st_size > 10_000
        (seen,) = answer(here("models", "watch", model, "episodes=2", "--once", "--json"))
        assert (seen["event"], seen["from_version"], seen["to_version"]) == ("changed", 1, 2)
        assert (seen["verdict"], seen["actor"]) == ("passed", None)
        assert seen["report"]["clear_rate"] == 1.0
        assert answer(here("models", "watch", model, "episodes=2", "--once", "--json")) == []

        clip = tmp_path / "champion.mp4"
        ok(here("play", f"models:/{model}@champion", "--out", str(clip)))
        assert clip.stat().st_size > 10_000
        judged = answer(here("eval", f"models:/{model}@champion", "--episodes", "2", "--json"))
        assert judged["checkpoint"] == f"models:/{model}/2"  # the version, for good
        assert judged["clear_rate"] == 1.0

        begun = ok(
            here("train", "configs/ppo-1-1.yaml", "--init", f"models:/{model}@champion", *SHORT, "--json")
        )
        row = answer(here("runs", "show", json.loads(begun)["run_id"], "--json"))
        assert row["machine"]["init_from"] == f"models:/{model}/2"

        back = answer(here("models", "rollback", model, "--reason", "only to show it", "--json"))
        assert (back["from_version"], back["to_version"]) == (2, 1)
        browser.open(f"{server.url}/#/models/{model}/versions/1", width=1400, height=900)
        browser.wait_for("document.body.innerText.includes('mario_dist.kind')")
        browser.screenshot(Path(SCREENSHOTS or tmp_path) / "mlflow-version.png")
    assert history(here, model) == [
        ("promote", None, 1, False, "failed"),
        ("promote", None, 1, True, "forced"),
        ("changed", 1, 2, True, "passed"),
        ("rollback", 2, 1, True, "verified"),
    ]
    assert "no version that was" in refused(here("models", "rollback", model))


def test_a_version_predicts_from_raw_stacks_without_mario_dist(
    model: str, here: Here, server: MLflowServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    (made,) = answer(here("models", "register", "zoo:1-1", "episodes=2", "--json"))
    script = """
import json, os, sys
import numpy as np
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
stacks = np.load(sys.argv[3])
for batch in (stacks[:1], stacks):
    assert model.predict(batch).shape == (len(batch), 7)
assert not any(name.startswith("mario_dist") for name in sys.modules)
np.save(sys.argv[4], model.predict(stacks))
print(json.dumps([str(model.metadata.signature.inputs), model.metadata.metadata["actions"]]))
"""
    package = registry.fetch(registry.version(Reference(model, 1, None)), tmp_path / "cache")
    replayed = load_file(package / "replayed.safetensors")
    np.save(tmp_path / "stacks.npy", replayed["stack"])
    command = [sys.executable, "-W", "ignore", "-c", script, server.url, made["target"]]
    command += [str(tmp_path / "stacks.npy"), str(tmp_path / "scores.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    inputs, actions = json.loads(done.stdout)
    assert "uint8" in inputs
    assert actions == ["NOOP", "right", "right+A", "right+B", "right+A+B", "A", "left"]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), replayed["scores"], atol=1e-4)


def test_the_same_network_is_one_version_and_a_run_gives_its_best_and_its_final(
    model: str, here: Here, tmp_path: Path
) -> None:
    probe = ["env.kind=probe", "env.frame_size=[12,12]", "env.max_steps=20", "network.torso=mlp"]
    evaluated = ["checkpoint.every_steps=512", "evaluation.every_steps=768", "total_steps=1536"]
    ok(here("train", "configs/smoke.yaml", "network.hidden=16", *probe, *evaluated))
    first = answer(here("models", "register", "latest", "episodes=2", "--json"))
    again = answer(here("models", "register", "latest", "episodes=2", "--json"))
    assert [version["new"] for version in again] == [False] * len(first)
    assert [version["target"] for version in first] == [version["target"] for version in again]
    assert len(answer(here("models", "list", model, "--json"))) == len(first)
    kinds = [version["tags"]["mario_dist.kind"] for version in first]
    assert kinds in (["best", "final"], ["best and final"])


def test_a_first_champion_that_fails_loses_the_alias_and_other_models_are_let_alone(
    model: str, here: Here, server: MLflowServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.url, registry_uri=server.url)
    run = client.create_run(client.create_experiment(tmp_path.name)).info.run_id
    client.create_registered_model("another-team")
    client.create_model_version("another-team", f"runs:/{run}/model", run_id=run)
    registry.move("another-team", "champion", 1)
    ok(here("models", "register", str(other_network(tmp_path)), "episodes=2"))
    registry.move(model, "champion", 1)
    rows = answer(here("models", "watch", "--all", "--put-back", "episodes=2", "--once", "--json"))
    assert [(row["model"], row["event"], row["to_version"]) for row in rows] == [
        (model, "changed", 1),
        (model, "put back", None),
    ]
    assert registry.holder(model, "champion") is None
    assert registry.holder("another-team", "champion") == 1


def test_the_audit_of_another_registry_is_not_this_ones(
    model: str, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for target in ("zoo:1-1", str(other_network(tmp_path))):
        ok(here("models", "register", target, "episodes=1"))
    for number in ("2", "1"):
        ok(here("models", "promote", model, number, "episodes=1", "--force", "--reason", "to have a past"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ok(here("models", "register", "zoo:1-1", "episodes=1"))
    assert "no version that was" in refused(here("models", "rollback", model))


def test_processes_that_fetch_and_register_at_once_get_in_nobodys_way(
    model: str, here: Here, tmp_path: Path, registry: ModelRegistry
) -> None:
    def at_once(*arguments: str) -> None:
        command = [sys.executable, "-m", "mario_dist.cli.main", *arguments]
        many = [subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in many:
            _, complaints = process.communicate(timeout=120)
            assert process.returncode == 0, complaints

    at_once("models", "register", "zoo:1-1", "episodes=1")
    assert len(registry.versions(model)) == 1
    at_once("eval", f"models:/{model}/1", "--episodes", "1", "--no-log")


def test_a_version_that_fails_is_put_back_also_by_a_watcher_that_starts_later(
    model: str, here: Here, server: MLflowServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=2"))
    ok(here("models", "register", str(other_network(tmp_path)), "episodes=2"))
    ok(here("models", "promote", model, "1", "episodes=2"))
    registry.move(model, "champion", 2)
    watch = ("models", "watch", model, "episodes=2", "--once", "--json")
    (failed,) = answer(here(*watch))
    assert failed["verdict"] == "failed"
    assert "it clears 0% of 2 episodes" in failed["reason"]
    assert registry.holder(model, "champion") == 2  # it was not told to put it back
    (back,) = answer(here(*watch, "--put-back"))
    assert (back["event"], back["from_version"], back["to_version"]) == ("put back", 2, 1)
    assert registry.holder(model, "champion") == 1
    assert back["verdict"] == "verified"
    assert answer(here(*watch, "--put-back")) == []
    registry.move(model, "champion", None)
    (gone,) = answer(here(*watch, "--put-back"))
    assert (gone["from_version"], gone["to_version"], gone["reason"]) == (1, None, "the alias was removed")


def test_a_killed_watcher_catches_up_and_doubles_nothing(
    model: str, here: Here, registry: ModelRegistry
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=2"))
    command = [sys.executable, "-m", "mario_dist.cli.main", "models", "watch", model, "--every", "0.1"]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, "episodes=30"], cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        while "watching" not in (line := process.stderr.readline()):
            assert line, "it ended"
        return process

    first = start()
    registry.move(model, "champion", 1)
    assert first.stderr is not None
    assert "verifying" in first.stderr.readline()
    first.kill()
    first.communicate()
    assert here("models", "history", model).returncode == 1  # killed before it had said anything
    process = subprocess.Popen([*command, "episodes=1"], cwd=REPO, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert "changed from none to version 1: passed" in process.stdout.readline()
    time.sleep(0.5)  # a few looks more
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "")
    assert history(here, model) == [("changed", None, 1, True, "passed")]


def test_two_promotions_at_once_end_in_one_champion_and_two_rows(
    model: str, here: Here, registry: ModelRegistry, tmp_path: Path
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=2"))
    ok(here("models", "register", str(other_network(tmp_path)), "episodes=2"))
    command = [sys.executable, "-m", "mario_dist.cli.main", "models", "promote", model]
    options = ["episodes=1", "--force", "--reason", "a race"]
    both = [
        subprocess.Popen([*command, number, *options], cwd=REPO, stderr=subprocess.PIPE, text=True)
        for number in ("1", "2")
    ]
    for process in both:
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
    rows = history(here, model)
    assert [(event, moved) for event, _, _, moved, _ in rows] == [("promote", True)] * 2
    (_, none, first, _, _), (_, before, last, _, _) = rows
    assert none is None
    assert before == first
    assert {first, last} == {1, 2}
    assert registry.holder(model, "champion") == last
    with RunStore(os.environ["MARIO_DIST_DB"]) as store:
        assert len(store.promotions()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("play", "models:/nobody@champion"), "there is no model 'nobody' in http"),
        (("play", "models:/mario-1-1-ppo"), "names no version: write models:/mario-1-1-ppo@champion or"),
        (("play", "models:/../../x@champion"), "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        (("play", "models:/../1"), "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        (("models", "promote", "nobody", "1"), "there is no model 'nobody'"),
        (("models", "promote", "nobody", "one"), "'one' is no version: write its number"),
        (("models", "promote", "nobody", "@"), "'' cannot be an alias"),
        (("models", "promote", "nobody", "9" * 30), "is no version"),
        (
            ("models", "promote", "nobody", "1", "--alias", "Champion"),
            "'Champion' cannot be an alias: take low",
        ),
        (("models", "watch", "nobody", "--alias", "v1"), "'v1' cannot be an alias"),
        (("models", "watch", "nobody", "--once"), "there is no model 'nobody' in http"),
        (("models", "list", "a'b"), 'there is no model "a\'b"'),
        (("models", "promote", "nobody", "1", "--force"), "--force wants to know why"),
        (("models", "promote", "nobody", "1", "episode=1"), "did you mean episodes?"),
        (("models", "promote", "nobody", "1", "--gate", "no.yaml"), "there is no configuration file no.yaml"),
        (("models", "rollback", "nobody"), "the audit knows of no version that was nobody@champion before"),
        (("models", "history"), "nothing was promoted"),
        (("models", "list"), "no model is registered in http"),
        (("models", "list", "nobody"), "there is no model 'nobody'"),
        (("models", "register", "nobody"), "there is no run 'nobody'"),
        (("models", "register", "models:/x/1"), "is a registered model already"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    arguments: tuple[str, ...], says: str, model: str, here: Here
) -> None:
    assert says in refused(here(*arguments))


def test_a_watcher_waits_for_servers_that_are_away_and_does_not_call_that_a_failure(
    model: str, here: Here, server: MLflowServer, registry: ModelRegistry
) -> None:
    ok(here("models", "register", "zoo:1-1", "episodes=2"))
    command = [sys.executable, "-m", "mario_dist.cli.main", "models", "watch", "--all", "--every", "0.1"]
    impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    process = subprocess.Popen(
        [*command, "--put-back", "episodes=1"],
        cwd=REPO,
        env={**os.environ, **impatient},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert "watching all models@champion" in process.stderr.readline()
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        assert "the next look tries again" in process.stderr.readline()
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    registry.move(model, "champion", 1)
    assert "changed from none to version 1: passed" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=30)
    assert history(here, model) == [("changed", None, 1, True, "passed")]
