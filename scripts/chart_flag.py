"""Draw what `mario-dist bench flag` measured: clear rate against agent steps and against minutes of training.

uv run python scripts/chart_flag.py docs/runs/bench-flag.json [MORE.json ...] docs/images/flag.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--on", help="what each training had, instead of all cores of the machine")
    arguments = parser.parse_args()
    configs = {}
    for path in arguments.documents:
        document = json.loads(path.read_text())
        if twice := configs.keys() & document["configs"].keys():
            parser.error(f"two documents have {', '.join(twice)}")
        configs |= document["configs"]
        machine, episodes = document["machine"], document["episodes"]

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), dpi=120, sharey=True)
    for index, (name, config) in enumerate(configs.items()):
        for number, run in enumerate(config["runs"]):
            steps, seconds, rates, _ = zip(*run["curve"], strict=True)
            label = f"{name}, {len(config['runs'])} seeds" if number == 0 else None
            style = {"color": f"C{index}", "marker": ".", "alpha": 0.7, "label": label}
            panels[0].plot([s / 1000 for s in steps], [100 * r for r in rates], **style)
            panels[1].plot([s / 60 for s in seconds], [100 * r for r in rates], **style)
    panels[0].set(xlabel="thousand agent steps", ylabel=f"% of {episodes} episodes cleared", ylim=(-3, 103))
    on = arguments.on or f"{machine['cores']} cores"
    panels[1].set(xlabel=f"minutes of training, {machine['cpu']}, {on}")
    for panel in panels:
        panel.axhline(95, color="grey", linewidth=0.5)
        panel.grid(alpha=0.2)
    panels[1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
