"""mario-dist bench emulator | parity | rollout | scaling | replay | learner | eval | flag | train

``cli/bench_store.py`` adds store and outage.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mario_dist.cli.options import Rom

if TYPE_CHECKING:
    from mario_dist.bench.peers import Settings

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine, and the peers on the same work.")

ConfigArguments = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="As for train.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@bench_app.command()
def emulator(
    arguments: ConfigArguments = None,
    vs: Annotated[str, typer.Option(help="Measure nes-py beside.")] = "",
    lanes: Annotated[str, typer.Option(help="Lane counts to measure.")] = "1,8,32",
    threads: Annotated[str | None, typer.Option(help="Thread counts; by default 1 and all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each measurement.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Agent steps per second of the environment on the native core: random play, resets, rewards and all.

    Example: mario-dist bench emulator --vs nes-py --json
    """
    from mario_dist.bench.emulator import bench_emulator
    from mario_dist.cli.config import read_config
    from mario_dist.emulator import require_native

    if vs not in ("", "nes-py"):
        raise typer.BadParameter(f"--vs takes nes-py, not {vs!r}")
    require_native()
    document = bench_emulator(
        read_config(arguments or []).env,
        ("nes-py",) if vs else (),
        _counts(lanes, "--lanes"),
        _threads(threads),
        rounds,
        seconds,
        lambda text: typer.echo(text, err=True),
    )
    columns = (
        "emulator",
        "threads",
        "lanes",
        "agent_steps_per_s",
        "agent_steps_per_s_per_core",
        "frames_per_s",
    )
    _show(document, columns, as_json)
    if as_json:
        return
    for name, ratio in document["ratio"].items():
        print(f"one core: {ratio:.1f} times {name}")
    for row in document["scaling"]:
        print(
            f"{row['threads']} threads, {row['lanes']} lanes: {row['over_one_thread']:.2f} times one thread;"
            f" as many separate processes: {row['of_separate_processes']:.2f} times one"
        )
    _print_table("a step of one lane", "us", document["step_us"])


@bench_app.command()
def parity(
    frames: Annotated[int, typer.Option(min=100, help="Frames to compare.")] = 60_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    rom: Rom = None,
    as_json: Json = False,
) -> None:
    """Play the same buttons on the native core and on nes-py, and compare RAM and picture of every frame.

    From power-on and from the start of each of the 32 levels. Exit code 1 where anything differs.

    Example: mario-dist bench parity --frames 200000 --seed 1
    """
    from mario_dist.bench.parity import bench_parity
    from mario_dist.emulator import require_native

    require_native()
    document = bench_parity(frames, seed, str(rom or ""), lambda text: typer.echo(text, err=True))
    if as_json:
        print(json.dumps(document))
    else:
        print_machine(document)
        print(
            f"{document['frames']:,} frames, {document['looks_of_the_undrawn_machine']:,} looks at a machine"
            f" that draws those only: {document['frames_with_other_ram']} with other RAM,"
            f" {document['frames_with_another_picture']} with another picture"
            f" ({document['rows_of_pictures_that_differ']} rows)"
        )
        env = document["env"]
        print(
            f"{env['agent_steps']:,} agent steps of the environment, {env['episodes']} episodes:"
            f" {env['differ']} steps differ"
        )
    if not document["equal"]:
        raise typer.Exit(1)


@bench_app.command()
def rollout(
    arguments: ConfigArguments = None,
    lanes: Annotated[str, typer.Option(help="Lane counts to measure.")] = "1,8,16",
    threads: Annotated[str | None, typer.Option(help="Thread counts; by default 1 and all.")] = None,
    unrolls: Annotated[int, typer.Option(min=1, help="Measured unrolls of each pair.")] = 3,
    as_json: Json = False,
) -> None:
    """Agent steps per second of environment and policy, without learning.

    Example: mario-dist bench rollout --lanes 1,8,16 rollout.unroll_length=64
    """
    from mario_dist.bench.rollout import bench_rollout
    from mario_dist.cli.config import read_config

    document = bench_rollout(
        read_config(arguments or []), _counts(lanes, "--lanes"), _threads(threads), unrolls
    )
    _show(document, ("lanes", "threads", "agent_steps_per_s", "frames_per_s"), as_json)


@bench_app.command()
def scaling(
    arguments: ConfigArguments = None,
    actors: Annotated[str | None, typer.Option(help="Counts of rollout actors; by default 1 to all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each measurement.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Agent steps per second of rollout actors on Ray, beside the emulators alone in as many processes.

    Example: mario-dist bench scaling --actors 1,2 rollout.lanes=16
    """
    from mario_dist import machine
    from mario_dist.bench.scaling import bench_scaling
    from mario_dist.cli.config import read_config
    from mario_dist.emulator import require_native

    require_native()
    powers = [2**i for i in range(machine.cores().bit_length()) if 2**i <= machine.cores()]
    counts = _counts(actors, "--actors") if actors else powers
    config = read_config(arguments or [], "impala-1-1.yaml")
    document = bench_scaling(config, counts, rounds, seconds, lambda text: typer.echo(text, err=True))
    _show(document, ("actors", "lanes", "agent_steps_per_s", "emulators_alone_per_s"), as_json)
    if not as_json:
        for row in document["rows"]:
            print(
                f"{row['actors']} actor(s): {row['of_first']:.2f} times the first,"
                f" {row['of_ceiling']:.0%} of the emulators alone"
            )


@bench_app.command()
def replay(
    arguments: ConfigArguments = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Transitions; by default 1,000,000, or what the memory holds.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Transitions drawn at once.")] = 512,
    compression: Annotated[str, typer.Option(help="none, lz4 or both.")] = "none,lz4",
    ray: Annotated[bool, typer.Option(help="The same shard as a Ray actor, too.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each measurement.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Transitions per second into and out of a replay shard full of real frames, and the memory of one.

    A few minutes: most of it goes to filling shards and to starting Ray.

    Example: mario-dist bench replay --json
    """
    from mario_dist.bench.replay import bench_replay, resized
    from mario_dist.cli.config import read_config

    kinds = compression.split(",")
    if not set(kinds) <= {"none", "lz4"}:
        raise typer.BadParameter(f"--compression takes none, lz4 or none,lz4, not {compression!r}")
    document = bench_replay(
        resized(read_config(arguments or [], "apex-1-1.yaml"), capacity, batch),
        kinds,  # type: ignore[arg-type]  # checked above
        through_ray=ray,
        rounds=rounds,
        seconds=seconds,
        announce=lambda text: typer.echo(text, err=True),
    )
    columns = ("where", "compression", "capacity", "adds_per_s", "samples_per_s", "updates_per_s")
    _show(document, columns, as_json)
    if as_json:
        return
    for row in document["rows"]:
        if "bytes_per_transition" in row:
            print(
                f"{row['compression']}: {row['bytes_per_transition']:,.0f} bytes of resident memory each;"
                f" {row['growth_when_full_mib']:+.1f} MiB while all of it was overwritten"
            )


@bench_app.command()
def learner(
    arguments: ConfigArguments = None,
    threads: Annotated[str | None, typer.Option(help="Thread counts; by default 1 and all.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured learner steps of each count.")] = 3,
    as_json: Json = False,
) -> None:
    """Samples per second of the learner on a real unroll, and of a bare PyTorch loop on the same.

    Example: mario-dist bench learner network.torso=nature network.hidden=512
    """
    from mario_dist.bench.learner import bench_learner
    from mario_dist.cli.config import read_config

    document = bench_learner(read_config(arguments or []), _threads(threads), steps)
    bare = [name for name in ("bare_samples_per_s",) if name in document["mario-dist"]]
    _show(document, ("threads", "device", "samples_per_s", "agent_steps_per_s", *bare), as_json)
    if not as_json and bare:
        print(f"{document['mario-dist']['share_of_bare']:.1%} of a bare PyTorch loop")


@bench_app.command("eval")
def evaluation(
    target: Annotated[str, typer.Argument(help="As for eval.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per level.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 3,
    as_json: Json = False,
) -> None:
    """Seconds of an evaluation by jitter-30: on many lanes and all cores, beside a single lane.

    Example: mario-dist bench eval latest --json
    """
    from mario_dist.bench.evaluate import bench_evaluate
    from mario_dist.cli.evaluate import make_protocol
    from mario_dist.cli.target import load_policy

    policy = load_policy(target)
    document = bench_evaluate(
        policy.network,
        policy.config.env,
        make_protocol(policy, "jitter-30", episodes, 0, None),
        rounds,
        lambda text: typer.echo(text, err=True),
    )
    if as_json:
        print(json.dumps(document))
        return
    print_machine(document)
    ours, alone, ratio = document["mario-dist"], document["one lane"], document["ratio"]["one lane"]
    print(
        f"{episodes} episodes: {ours['seconds']:.1f} s on {ours['cores']} cores x {ours['lanes']} lanes;"
        f" one lane {alone['seconds']:.1f} s, {ratio:.1f} times as long"
    )


@bench_app.command()
def flag(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For every configuration.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="Configurations to train, in turn; by default that of train.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each, with seeds from 0 on.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Agent steps between evaluations.")] = 20_000,
    episodes: Annotated[int, typer.Option(min=1, help="Of each evaluation.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="Also write the document here after each training.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How many agent steps and minutes of training until Mario takes the flag, and until he does so reliably.

    Whole trainings, kept as runs like any other. Every --every agent steps they pause for an evaluation by
    the configuration's stop.protocol, whose time is counted apart.

    Example: mario-dist bench flag --config configs/ppo-1-1.yaml --config configs/apex-1-1.yaml --seeds 3
    """
    from mario_dist.bench.flag import Where, bench_flag
    from mario_dist.cli.config import DEFAULT, read_config
    from mario_dist.errors import UserError
    from mario_dist.paths import runs_dir
    from mario_dist.registry import default_tracking_uri
    from mario_dist.store import default_url

    configs = {Path(name).stem: read_config([name, *(overrides or [])]) for name in config or []}
    if len(configs) < len(config or []):
        raise UserError("two configurations of one name: their figures could not be told apart")
    configs = configs or {Path(DEFAULT).stem: read_config(overrides or [])}
    if out is not None:
        try:
            out.touch()
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}") from error
    document: dict[str, Any] = {}
    for document in bench_flag(
        configs,
        range(seeds),
        every,
        episodes,
        Where(runs_dir(), default_url(), default_tracking_uri()),
        lambda text: typer.echo(text, err=True),
    ):
        if out is not None:
            out.write_text(json.dumps(document, indent=1))
    if as_json:
        print(json.dumps(document))
        return
    print_machine(document)
    for name, result in document["configs"].items():
        table = Table(
            name, "agent steps", "range", "minutes", "range", f"of {len(result['runs'])} seeds", box=None
        )
        for mark, spread in result["marks"].items():
            cells = (_spread(spread["agent_steps"], "{:,.0f}"), _spread(spread["minutes"], "{:.1f}"))
            table.add_row(mark, *(cell for pair in cells for cell in pair), str(spread["reached"]))
        Console().print(table)


def _spread(values: Mapping[str, float | None], form: str) -> tuple[str, str]:
    """The median, and the range."""
    median, least, most = ("never" if v is None else form.format(v) for v in values.values())
    return median, f"{least} to {most}"


@bench_app.command()
def train(
    vs: Annotated[
        str, typer.Option(help="Peers to measure beside: sb3, rllib, sb3_vectorenv (SB3 on our environment).")
    ] = "",
    also: Annotated[
        str, typer.Option(help="Ours once more: small (the default's small CNN), nes-py (the slow emulator).")
    ] = "",
    algo: Annotated[
        str, typer.Option(help="ppo, apex (beside the peers' DQN) or impala (of the peers, rllib has it).")
    ] = "ppo",
    envs: Annotated[
        int | None, typer.Option(min=1, help="Emulators: 8, and 16 for impala.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Agent steps of each of them per iteration: 128 for ppo, 64 for apex, 32 for impala.",
            show_default=False,
        ),
    ] = None,
    replay_ratio: Annotated[
        float, typer.Option(min=0.01, help="Samples learned from per agent step, for apex and DQN.")
    ] = 1.0,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measured iterations, after a warm-up: 3, and for impala 5 windows of 5 s or longer.",
            show_default=False,
        ),
    ] = None,
    level: str = "1-1",
    peer_threads: Annotated[
        int, typer.Option(min=0, help="The peers' PyTorch threads; 0 for what is fastest for each.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Agent steps per second of the whole training loop, beside the peers on the same settings.

    Example: mario-dist bench train --algo impala --vs rllib --also small,nes-py --json
    """
    from mario_dist.bench.peers import PEERS
    from mario_dist.bench.train import OURS, VARIANTS, bench_train

    peers = [name for name in vs.split(",") if name]
    for name in peers:
        if name not in PEERS:
            raise typer.BadParameter(f"there is no peer {name!r}; peers are {', '.join(PEERS)}")
    variants = [name for name in also.split(",") if name]
    for name in variants:
        if name not in VARIANTS:
            raise typer.BadParameter(f"there is no variant {name!r}; variants are {', '.join(VARIANTS)}")
    given: dict[str, Any] = {"n_envs": envs, "n_steps": steps, "iterations": iterations}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"level": level, "torch_threads": peer_threads}
    settings = _workload(algo, given, replay_ratio)
    document = bench_train(settings, peers, variants, lambda text: typer.echo(text, err=True))
    if as_json:
        print(json.dumps(document))
        return
    print_machine(document)
    updates = ["updates/s of learning"] if algo == "apex" else []
    table = Table(
        "", "agent steps/s", "rollout s", "learn s", *updates, *(f"/ {peer}" for peer in peers), box=None
    )
    for name in (OURS, *(f"{OURS} {variant}" for variant in variants), *peers):
        result = document[name]
        seconds = result["seconds"]
        table.add_row(
            name,
            f"{result['agent_steps_per_s']:.0f}",
            f"{seconds['rollout']:.2f}",
            f"{seconds['learn']:.2f}",
            *(f"{result['updates_per_learn_s']:.1f}" for _ in updates),
            *(f"{ratio:.2f}" for ratio in document["ratio_of"].get(name, {}).values()),
        )
    Console().print(table)
    if core_seconds := document[OURS]["detail"].get("core_seconds"):
        _print_table("where the cores' time goes", "s / 1,000 agent steps", core_seconds, digits=3)


def _workload(algo: str, given: Mapping[str, Any], replay_ratio: float) -> "Settings":
    """The algorithm's settings, with its own for what is not ``given``."""
    from mario_dist.bench.peers import DQNSettings, ImpalaSettings, PeerSettings
    from mario_dist.errors import UserError

    try:
        match algo:
            case "ppo":
                turn = given.get("n_envs", 8) * given.get("n_steps", 128)
                return PeerSettings(**given, minibatch=min(256, turn))
            case "apex":
                return DQNSettings(**given, replay_ratio=replay_ratio)
            case "impala":
                return ImpalaSettings(**given)
    except ValueError as error:
        raise UserError(str(error)) from error
    raise typer.BadParameter(f"--algo takes ppo, apex or impala, not {algo!r}")


def _threads(text: str | None) -> list[int]:
    from mario_dist import machine

    return _counts(text, "--threads") if text else sorted({1, machine.cores()})


def _counts(text: str, option: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"{option} takes counts such as 1,8,16, not {text!r}")
    return counts


def _show(document: Mapping[str, Any], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    print_machine(document)
    table = Table(*columns, box=None)
    for row in document["rows"]:
        table.add_row(*(f"{row[c]:,.0f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    Console().print(table)


def _print_table(title: str, unit: str, parts: Mapping[str, float], digits: int = 1) -> None:
    table = Table(title, unit, box=None)
    for name, value in parts.items():
        table.add_row(name, f"{value:.{digits}f}")
    Console().print(table)


def print_machine(document: Mapping[str, Any]) -> None:
    machine = document["machine"]
    gpus = machine["gpus"] or "none"
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, GPUs: {gpus}")
