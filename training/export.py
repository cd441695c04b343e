"""Make a trained network small enough to share: 22 MB instead of 45, with everything visualizer.py needs.

python export.py checkpoints/model.pt --out resnet18-flowers.pt
python export.py runs/64/model.pt runs/128/model.pt runs/224/model.pt --out checkpoints/resnet18-cifar10.pt

Several files are runs that began with each other's weights (train.py --init): the weights are those of the last, the
history and the time those of all, and the recipe names the command of each.
"""

from pathlib import Path

from torch import Tensor

import train
from dataset import sources
from network import ResNet18
from runtime import checkpoint
from runtime.command_line import ArgumentParser, one_line_errors
from training.optimizer import DEFAULT_GAMMA

OF_A_MACHINE = {"root", "device", "out", "log_every", "save_every", "resume", "overwrite", "tensorboard"}


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="CKPT", help="the model.pt of a run, or of several, the first first")
    add("--out", required=True, metavar="FILE", help="the file to write")
    add("--overwrite", action="store_true", help="replace the file that is there")
    add("--data", default="cifar10", help="where visualizer.py looks for test images unless it is told")
    return parser.parse_args(argv)


def exported(runs: list[str | Path], source: str) -> dict:
    """A checkpoint of the last run's network: matrices in half precision, vectors (biases, batch norms) in single.

    Raises CheckpointError for files that are not of finished runs of train.py on the same data.
    """
    networks, states = zip(*map(checkpoint.load_network, runs), strict=True)
    for n, (run, state) in enumerate(zip(runs, states, strict=True)):
        config = state["config"]
        if not {"seconds", "epoch", "step", "test_accuracy"} <= state["result"].keys() or "recipe" in config:
            raise checkpoint.CheckpointError(f"{run} is of no finished run: pass a model.pt of train.py")
        if config.get("hold_out"):
            raise checkpoint.CheckpointError(f"{run} was tested on training images (--hold-out): train on all of them")
        if n > 0 and not config.get("init"):
            raise checkpoint.CheckpointError(f"{run} did not begin with the weights of another run: pass it alone")
        if any(state[name] != states[0][name] for name in ("classes", "mean", "std")):
            raise checkpoint.CheckpointError(f"{run} was trained on other data than {runs[0]}: pass runs on the same")
    last = states[-1]
    config = {name: value for name, value in last["config"].items() if name not in OF_A_MACHINE}
    totals = {name: sum(state["result"][name] for state in states) for name in ("seconds", "epoch", "step")}
    recipe = [command(state["config"]) for state in states]
    return {
        "model": {name: halved(value) for name, value in networks[-1].state_dict().items()},
        **{name: last[name] for name in ("classes", "mean", "std", "image_size")},
        "config": config | {"data": source, "init": None, "recipe": recipe},
        "result": last["result"] | totals,
        "history": joined_histories(states),
    }


def halved(value: Tensor) -> Tensor:
    """Half precision for what has many numbers; few would be saved on the others."""
    return value.half() if value.ndim > 1 else value


def command(config: dict) -> str:
    """The call of train.py with these settings; for paths it has FOLDER and PREVIOUS (the run it began with)."""
    defaults = vars(train.parse_args([]))
    config = defaults | config
    if config["data"] not in sources.DATASETS:
        config["data"] = "FOLDER"
    if config["init"]:
        config["init"] = "PREVIOUS"
    if config["gamma"] == DEFAULT_GAMMA.get(config["schedule"]):
        config["gamma"] = defaults["gamma"]
    flags = []
    for name, default in defaults.items():
        value, flag = config[name], "--" + name.replace("_", "-")
        if name in OF_A_MACHINE or value == default:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags.append(f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(["python train.py", *flags])


def joined_histories(states: list[dict]) -> list[dict]:
    """The lines of all runs, with epochs and iterations counted on, each with the run's image size."""
    lines, epochs, steps = [], 0, 0
    for state in states:
        lines += [
            entry | {"epoch": entry["epoch"] + epochs, "step": entry["step"] + steps, "image_size": state["image_size"]}
            for entry in state["history"]
        ]
        epochs, steps = epochs + state["result"]["epoch"], steps + state["result"]["step"]
    return lines


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    with one_line_errors(checkpoint.CheckpointError):
        if Path(args.out).exists() and not args.overwrite:
            raise checkpoint.CheckpointError(f"{args.out} is there already: pass another --out, or --overwrite")
        state = exported(args.runs, args.data)
        checkpoint.check_weights(state["model"], ResNet18(len(state["classes"])), f"{args.out} in half precision")
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(state, args.out)
        print(*state["config"]["recipe"], sep="\n")
        print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB, image size {state['image_size']}")


if __name__ == "__main__":
    main()
