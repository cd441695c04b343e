"""Make a finished network small enough to share: 22 MB instead of 45, with all that visualizer.py needs.

python -m training.export runs/flowers/model.pt --data flowers --out resnet18-flowers.pt
"""

from pathlib import Path
from typing import Any

from dataset.sources import DATASETS
from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from runtime.command_line import ArgumentParser, one_line_errors, recipe
from training.resume import LOCAL_FLAGS


def exported(path: str | Path, data: str | None = None) -> dict[str, Any]:
    """A finished run's model.pt with the weights of convolutions and the linear layer in half precision.

    data: where visualizer.py finds the test images; by default the run's own data. Raises CheckpointError for another
    file, if the accuracy was measured on training images, and for a folder's images without `data`.
    """
    network, metadata = checkpoint.load_network(path)
    if not {"seconds", "epoch", "step", "test_accuracy"} <= metadata.result.keys() or "recipe" in metadata.config:
        raise CheckpointError(f"{path} is not a finished run: pass a model.pt of train.py")
    if metadata.config.get("hold_out"):
        raise CheckpointError(f"{path} was evaluated on training images (--hold-out): train on all of them")
    if data is None and (data := metadata.config.get("data")) not in DATASETS:
        raise CheckpointError(f"{path} was trained on a folder: pass --data, where others have these images")
    config = {name: value for name, value in metadata.config.items() if name not in LOCAL_FLAGS | {"data"}}
    if config.get("init"):
        config["init"] = Path(config["init"]).name  # the file's name tells that there was a run before this one
    weights = {name: value.half() if value.ndim > 1 else value for name, value in network.state_dict().items()}
    checkpoint.check_finite(weights, f"{path} in half precision")
    return {"model": weights} | vars(metadata) | {"config": config | {"data": data, "recipe": recipe(config)}}


def main(argv=None):
    """The command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("ckpt", metavar="CKPT", help="model.pt of a finished run")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--data", help="data that visualizer.py uses by default (default: the run's, if it has a name)")
    args = parser.parse_args(argv)
    with one_line_errors(CheckpointError):
        out = Path(args.out)
        if out.exists() and not args.overwrite:
            raise CheckpointError(f"{out} exists: pass another --out, or --overwrite")
        state = exported(args.ckpt, args.data)
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(state, out)
        print(*state["config"]["recipe"], f"{out}: {out.stat().st_size / 1e6:.1f} MB", sep="\n")


if __name__ == "__main__":
    main()
