"""How fast the environment is, through the ``VectorEnv`` that training uses, on each emulator backend."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from mario_dist import machine
from mario_dist.config import override
from mario_dist.emulator import RAM_BYTES, SCREEN_SHAPE, make_lanes
from mario_dist.env import EnvConfig, MarioVectorEnv
from mario_dist.env.actions import action_set
from mario_dist.env.starts import level_start
from mario_dist.errors import UserError
from mario_dist.types import U8

Backend = Literal["native", "nes-py"]
NATIVE: Backend = "native"
_PLANNED_STEPS = 64


def bench_emulator(
    config: EnvConfig,
    vs: Sequence[Backend],
    lanes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    seconds: float,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Agent steps per second of random play, resets and rewards and all, of the native core and ``vs``.

    In each of ``rounds`` every contender plays every pair of lanes and threads for ``seconds``, one after
    the other, so that a machine that changes its speed changes everybody's; figures are medians over the
    rounds. ``agent_steps_per_s_per_core`` is the best that one thread reaches, ``ratio`` the median over
    the rounds of ours / theirs there, ``scaling`` that of more threads over one, beside what as many
    processes reach that share nothing.
    """
    contenders: tuple[Backend, ...] = (NATIVE, *vs)
    pairs = list(product(threads, lanes))
    rates: dict[tuple[Backend, int, int], list[float]] = {}
    for number in range(rounds):
        announce(f"round {number + 1} of {rounds}")
        for (t, n), name in product(pairs, contenders):
            rates.setdefault((name, t, n), []).append(_rate(replace(config, emulator=name), n, t, seconds))

    def row(name: Backend, t: int, n: int) -> dict[str, Any]:
        rate = statistics.median(rates[name, t, n])
        return {
            "emulator": name,
            "lanes": n,
            "threads": t,
            "agent_steps_per_s": rate,
            "agent_steps_per_s_per_core": rate / t,
            "frames_per_s": rate * config.frame_skip,
        }

    rows = [row(name, t, n) for name in contenders for t, n in pairs]
    fewest = min(threads)
    best: dict[str, dict[str, Any]] = {
        name: max(
            (r for r in rows if r["emulator"] == name and r["threads"] == fewest),
            key=lambda r: float(r["agent_steps_per_s_per_core"]),
        )
        for name in contenders
    }

    def rounds_of(name: Backend) -> list[float]:
        return rates[name, fewest, best[name]["lanes"]]

    announce("where a step's time goes")
    return {
        "machine": machine.describe(),
        **best,
        "ratio": {name: _ratio(rounds_of(NATIVE), rounds_of(name)) for name in vs},
        "rows": rows,
        "scaling": [
            {
                "threads": t,
                "lanes": n,
                "over_one_thread": _ratio(rates[NATIVE, t, n], rates[NATIVE, fewest, n]),
                "of_separate_processes": _processes(config, n, t, seconds),
            }
            for t, n in pairs
            if t > fewest and n == max(lanes)
        ],
        "step_us": _step_parts(config, best[NATIVE]["lanes"]),
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _plan(config: EnvConfig, lanes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    n_actions = len(action_set(config.actions))
    return np.random.default_rng(0).integers(n_actions, size=(_PLANNED_STEPS, lanes))


def _rate(config: EnvConfig, lanes: int, threads: int, seconds: float) -> float:
    env = MarioVectorEnv(config, lanes, (0,), threads=threads)
    try:
        plan = _plan(config, lanes)
        env.reset()
        for action_N in plan[:2]:
            env.step(action_N)
        steps, at = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - at) < seconds or steps < 2:
            env.step(plan[steps % _PLANNED_STEPS])
            steps += 1
        return steps * lanes / elapsed
    finally:
        env.close()


def _processes(config: EnvConfig, lanes: int, count: int, seconds: float) -> float:
    """How much more ``count`` processes do than one: what the machine's cores can give."""

    def total(n: int) -> float:
        return processes_rate(config, max(1, lanes // n), n, seconds)

    return statistics.median(total(count) / total(1) for _ in range(3))


def processes_rate(config: EnvConfig, lanes: int, count: int, seconds: float) -> float:
    """Agent steps/s of ``count`` processes together, each with ``lanes`` emulators and one thread."""
    workload = json.dumps({**asdict(config), "emulator": NATIVE})
    command = [sys.executable, "-m", __name__, str(lanes), str(seconds), workload]
    # All are ready before any starts: each waits for a line, then plays.
    children = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
        )
        for _ in range(count)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    rates = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise UserError("a process of the benchmark failed; its error stands above")
    return sum(float(rate) for rate in rates)


def _step_parts(config: EnvConfig, lanes: int, repeats: int = 300) -> dict[str, float]:
    """Microseconds of one agent step of one lane, by what they are spent on; one thread, medians."""
    from mario_dist.emulator import _native

    machines = make_lanes(
        NATIVE,
        lanes,
        rom=config.rom,
        frame_size=config.frame_size,
        masked_rows=config.hud_rows,
        keep_pictures=False,
    )
    start = level_start(NATIVE, config.levels[0], config.rom)
    ram = np.zeros((lanes, RAM_BYTES), dtype=np.uint8)
    out = np.zeros((lanes, *config.frame_size), dtype=np.uint8)
    resizer = _native.AreaResizer(*config.frame_size, config.hud_rows)
    colours = np.random.default_rng(0).integers(64, size=SCREEN_SHAPE, dtype=np.uint8)
    joypads = np.random.default_rng(0).choice(np.array([0x80, 0x81, 0x82], dtype=np.uint8), (repeats, lanes))

    def run(joypad_N: U8, frames: int) -> float:
        at = time.perf_counter()
        machines.run(np.arange(lanes), joypad_N, np.full(lanes, frames), ram, out)
        return (time.perf_counter() - at) / lanes

    def resize() -> float:
        at = time.perf_counter()
        for lane in range(lanes):
            resizer(colours, out[lane])
        return (time.perf_counter() - at) / lanes

    def save_and_load() -> float:
        at = time.perf_counter()
        for emulator in machines.emulators:
            emulator.load(emulator.save())
        return (time.perf_counter() - at) / lanes

    samples = []
    for repeat, joypad_N in enumerate(joypads):
        if repeat % 100 == 0:
            for emulator in machines.emulators:
                emulator.load(start)
        samples.append((run(joypad_N, 1), run(joypad_N, 5), resize(), save_and_load()))
    one, five, resizing, saving = (statistics.median(part) * 1e6 for part in zip(*samples, strict=True))
    frame = (five - one) / 4
    whole = 1e6 / statistics.median(_rate(replace(config, emulator=NATIVE), lanes, 1, 0.5) for _ in range(5))
    return {
        "emulation of the frames": frame * config.frame_skip,
        "drawing the last one": one - frame - resizing,
        "grey, mask and resize": resizing,
        "the rest: game state, reward, ends, resets": whole - one - frame * (config.frame_skip - 1),
        "whole step": whole,
        "save and load, once": saving,
    }


def _play_when_told(lanes: int, seconds: float, workload: str) -> None:
    config = override({"env": json.loads(workload)}, ()).env
    level_start(NATIVE, config.levels[0])
    print("ready", flush=True)
    sys.stdin.readline()
    print(_rate(config, lanes, 1, seconds))


if __name__ == "__main__":
    _play_when_told(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
