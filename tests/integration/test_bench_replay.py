"""bench replay: a real shard on frames of real play."""

import json
import subprocess
import sys


def test_it_measures_a_shard_and_its_memory() -> None:
    words = [
        "bench",
        "replay",
        "--capacity",
        "24000",
        "--batch",
        "64",
        "--no-ray",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mario_dist.cli.main", *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["compression"]: row for row in document["rows"]}
    assert set(rows) == {"none", "lz4"}
    for row in rows.values():
        assert row["capacity"] == 23552  # whole unrolls of 512
        assert min(row["adds_per_s"], row["samples_per_s"], row["updates_per_s"]) > 0
        # Nothing grows but by the pages that other parts of the process touch.
        assert row["growth_when_full_mib"] < 4
    frame = 64 * 64
    assert frame * 0.98 < rows["none"]["bytes_per_transition"] < frame + 250
    assert rows["lz4"]["bytes_per_transition"] < frame / 3
    assert document["mario-dist"] == document["rows"][0]


def test_ppo_has_no_replay_to_measure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mario_dist.cli.main", "bench", "replay", "configs/ppo-1-1.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "algo.name=ppo has no replay" in done.stderr
