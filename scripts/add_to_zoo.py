"""Put a run's best checkpoint into the zoo, judged by 100 episodes with a seed that training never saw.

uv run python scripts/add_to_zoo.py RUN [--name 1-1] [--seed 4242]
"""

import argparse
import dataclasses
from dataclasses import replace

import torch

from mario_dist import config as configuration
from mario_dist import machine
from mario_dist.checkpoint import load_checkpoint
from mario_dist.cli.target import find_checkpoint
from mario_dist.errors import UserError
from mario_dist.evaluation import SETTINGS, EvalProtocol, evaluate
from mario_dist.learner import network_arrays
from mario_dist.nets import set_weights
from mario_dist.store import RunStore, default_url
from mario_dist.system.build import make_network
from mario_dist.types import part
from mario_dist.zoo import add_to_zoo, half_precision, zoo_entry, zoo_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--name", help="by default the levels that it was trained on")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--if-better", action="store_true", help="leave a better one where it is")
    arguments = parser.parse_args()

    try:
        state = half_precision(load_checkpoint(find_checkpoint(arguments.run)[0]))
    except UserError as error:
        parser.error(str(error))
    config = configuration.parse(state.meta["config"])
    network = make_network(config)
    set_weights(network, network_arrays(part(state.arrays, "learner.")))
    torch.set_num_threads(1)
    protocol = EvalProtocol(
        config.env.levels, arguments.episodes, seed=arguments.seed, **SETTINGS[config.stop.protocol]
    )
    report = evaluate(network.eval(), replace(config.env, emulator="auto"), protocol, machine.cores())
    with RunStore(default_url()) as store:
        run = store.get_run(str(state.meta["run_id"]))
    machine_of = {"machine": run.machine.get("cpu"), "cores": run.machine.get("cores")}
    origin = {**machine_of, "git": run.git_commit, "git_dirty": run.git_dirty}
    name = arguments.name or ",".join(config.env.levels)
    said = f"{report.clear_rate:.0%} of {report.episodes} cleared, mean x {report.x_pos['mean']:.0f}"
    if arguments.if_better and name in zoo_names():
        before = zoo_entry(name)["evaluation"]
        if report.rank <= (before["clear_rate"], before["x_pos"]["mean"]):
            print(f"zoo:{name} stays: {said}, and it has {before['clear_rate']:.0%}")
            return
    path = add_to_zoo(name, state, dataclasses.asdict(report), origin)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {said}, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
