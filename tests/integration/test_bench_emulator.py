"""The emulator's benchmarks: what they print, and that a difference between the cores would be found."""

import json
import math
from itertools import islice

import pytest
from typer.testing import CliRunner

from mario_dist.bench.parity import POWER_ON, Undrawn, _compare, joypads
from mario_dist.cli.bench import bench_app
from mario_dist.emulator import make_emulator
from mario_dist.env import LEVELS


def test_the_emulators_are_measured_side_by_side() -> None:
    result = CliRunner().invoke(
        bench_app,
        [
            "emulator",
            "--vs",
            "nes-py",
            "--lanes",
            "1,2",
            "--threads",
            "1,2",
            "--rounds",
            "1",
            "--seconds",
            "0.05",
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    for name in ("native", "nes-py"):
        row = document[name]
        assert row["threads"] == 1
        assert row["agent_steps_per_s_per_core"] > 0
        assert row["frames_per_s"] == pytest.approx(8 * row["agent_steps_per_s"])
    assert document["ratio"]["nes-py"] == pytest.approx(
        document["native"]["agent_steps_per_s"] / document["nes-py"]["agent_steps_per_s"]
    )
    assert document["ratio"]["nes-py"] > 2, "the native core is not built with optimisation"
    assert {(r["emulator"], r["threads"], r["lanes"]) for r in document["rows"]} == {
        (name, t, n) for name in ("native", "nes-py") for t in (1, 2) for n in (1, 2)
    }
    (scaling,) = document["scaling"]
    assert scaling["threads"] == scaling["lanes"] == 2
    assert scaling["of_separate_processes"] > 0
    assert all(math.isfinite(value) for value in document["step_us"].values())
    assert document["machine"]["cpu"]


def test_parity_covers_every_level_and_exits_with_0_where_all_is_equal() -> None:
    result = CliRunner().invoke(bench_app, ["parity", "--frames", "1000", "--seed", "3", "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["equal"]
    assert document["frames"] == 1000
    assert [row["from"] for row in document["rows"]] == ["power-on", *LEVELS]
    assert document["env"]["agent_steps"] > 0


def test_a_single_other_byte_would_be_found() -> None:
    native, reference = make_emulator("native"), make_emulator("nes-py")
    for emulator in (native, reference):
        for _ in range(40):
            emulator.step(0)
    undrawn = Undrawn("")
    assert _compare(native, undrawn, reference, "here", 5, (0,))["ram_differs"] == 0
    native.poke(0x7DD, native.ram[0x7DD] ^ 1)  # a digit of the top score, on the title screen
    found = _compare(native, undrawn, reference, "here", 5, (0,))
    assert found["ram_differs"] == 5 + found["looks"]
    assert found["first_difference"].startswith("frame 0, ")


def test_the_joypads_of_a_seed_are_its_own_and_press_every_button() -> None:
    once, again, other = (list(islice(joypads((s,), POWER_ON), 2000)) for s in (0, 0, 1))
    assert once == again != other
    pressed = 0
    for joypad in once:
        pressed |= joypad
    assert pressed == 0xFF


@pytest.mark.usefixtures("beside_other_rays")
def test_rollout_actors_are_measured_beside_the_emulators_alone() -> None:
    words = ["scaling", "--actors", "1", "--rounds", "1", "--seconds", "0.2", "--json"]
    small = ["rollout.lanes=2", "rollout.unroll_length=4", "network.hidden=16"]
    result = CliRunner().invoke(bench_app, [*words, *small])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["actors"], row["lanes"], row["of_first"]) == (1, 2, 1.0)
    assert 0 < row["of_ceiling"] == row["agent_steps_per_s"] / row["emulators_alone_per_s"] < 1
