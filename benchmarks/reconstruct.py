"""Top-9 search and reconstructions: (a) a script as usually written, (b) this project, in turn and in one run.

python benchmarks/reconstruct.py --ckpt checkpoints/model.pt --data FOLDER

(a) reads, resizes and passes one picture at a time through torchvision's resnet18 with forward hooks, and reconstructs
one unit at a time with Captum's Deconvolution and GuidedBackprop. (b) does the same, crops and patches included, as in
visualizer.py. One reconstruction by one rule counts as one tile. (a) takes the same time for every tile, so it gets the
tiles of a few channels. (b) gets many channels, because it traces an image once for all channels that show it. The
limit is the rate of matrix products, measured in the same run, divided by the 3.63 GFLOP of an image's forward pass at
224x224.
Needs captum (requirements-dev.txt).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from captum.attr import Deconvolution, GuidedBackprop
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))
from hardware_limits import matrix_product_rate

from analysis.activations import search, split_dead_channels
from analysis.channels import inspect_channels
from analysis.inspection import Inspection, inspect
from analysis.settings import Settings
from runtime.device import keep_freed_memory

GFLOP_AT_224 = 3.63  # forward pass of one image; proportional to the number of pixels
Task = tuple[int, Callable[[], object]]  # how many images or tiles, and the call
STAGES = {"conv1": "relu", "conv5_x": "layer4"}  # stage -> where torchvision's network has it


def parse_args(argv=None):
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a model.pt of train.py")
    parser.add_argument("--data", required=True, help="a folder with test/<class>/*")
    parser.add_argument("--images", type=int, default=192, help="images to search per repetition (default: 192)")
    parser.add_argument(
        "--channels", type=int, default=48, help="channels of (b) per stage, evenly spread (default: 48)"
    )
    parser.add_argument("--usual-channels", type=int, default=4, help="the first of them, for (a) (default: 4)")
    parser.add_argument("--limit", type=int, help="test images to find the strongest in (default: all)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    return parser.parse_args(argv)


class UsualScript:
    """(a): torchvision, hooks and Captum, one image at a time."""

    def __init__(self, info, weights, dataset):
        self.network = torchvision.models.resnet18(num_classes=len(info.classes)).eval()
        self.network.load_state_dict(weights)
        for module in self.network.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # Captum's hooks need this
        size = info.image_size
        self.transform = v2.Compose(
            [
                v2.Resize(size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(info.mean, info.std),
            ]
        )
        self.dataset = dataset

    def input(self, index: int) -> torch.Tensor:
        path, _ = self.dataset.samples[index]
        return self.transform(self.dataset.loader(path))[None]

    def search(self, indices: list[int]) -> None:
        """The nine strongest images of every channel, with the position of the strongest unit."""
        features, hooks = {}, []
        for stage, name in STAGES.items():
            hook = lambda module, inputs, output, stage=stage: features.update({stage: output})  # noqa: E731
            hooks.append(self.network.get_submodule(name).register_forward_hook(hook))
        found = {stage: [] for stage in STAGES}
        with torch.no_grad():
            for index in indices:
                self.network(self.input(index))
                for stage in STAGES:
                    found[stage].append(features[stage][0].flatten(1).max(1))
        for stage in STAGES:
            torch.stack([peak.values for peak in found[stage]]).topk(9, 0)
        for hook in hooks:
            hook.remove()

    def reconstruct(self, stage: str, tiles: list[tuple[int, int, int, int]]) -> None:
        """Reconstruct tiles (image, channel, row, column), one at a time, by two rules."""
        children = list(self.network.named_children())
        last = [name for name, _ in children].index(STAGES[stage])
        part = torch.nn.Sequential(*(module for _, module in children[: last + 1]))
        for attribution in (Deconvolution(part), GuidedBackprop(part)):
            for index, channel, row, column in tiles:
                attribution.attribute(self.input(index).requires_grad_(), target=(channel, row, column))


def timed(action) -> float:
    """Duration of a call in seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def tasks(args, inspection: Inspection, settings: Settings) -> dict[str, tuple[Task, Task]]:
    """name -> the usual script's task, this project's task."""
    images = inspection.images
    dataset = torchvision.datasets.ImageFolder(Path(args.data) / "test")
    usual = UsualScript(inspection.metadata, inspection.network.state_dict(), dataset)
    chosen = torch.linspace(0, len(images) - 1, args.images).long()

    def ours() -> None:
        batches = (inspection.inputs(images[part]) for part in chosen.split(settings.batch_size))
        search(inspection.network, batches, STAGES)

    count = len(chosen)
    work = {"search, images": ((count, lambda: usual.search(chosen.tolist())), (count, ours))}
    for stage, top in inspection.search.top.items():
        alive, _ = split_dead_channels(top, range(len(top.scores)))
        channels = [alive[n] for n in torch.linspace(0, len(alive) - 1, min(args.channels, len(alive))).long()]
        tiles = [
            (
                int(inspection.top_images(top, channel)[n]),
                channel,
                *divmod(int(top.positions[channel, n]), top.map_size[1]),
            )
            for channel in channels[: args.usual_channels]
            for n in range(9)
        ]
        work[f"{stage}, tiles"] = (
            (2 * len(tiles), lambda stage=stage, tiles=tiles: usual.reconstruct(stage, tiles)),
            (
                2 * 9 * len(channels),
                # one after the other, as in visualizer.py, which keeps no more than a page of them
                lambda stage=stage, channels=channels: deque(
                    inspect_channels(inspection, settings, stage, channels), maxlen=0
                ),
            ),
        )
    return work


def measure(work: dict[str, tuple[Task, Task]], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """name -> per second by (a) and by (b), one value per repetition after a warm-up."""
    speeds = {name: {"a": [], "b": []} for name in work}
    for repetition in range(repetitions + 1):
        for name, tasks_of_both in work.items():
            for who, (count, action) in zip("ab", tasks_of_both, strict=True):
                speed = count / timed(action)
                if repetition > 0:
                    speeds[name][who].append(speed)
    return speeds


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    settings = Settings(stages=tuple(STAGES), limit=args.limit)
    inspection = inspect(args.ckpt, settings, "cpu", args.data)
    image_size = inspection.metadata.image_size
    speeds = measure(tasks(args, inspection, settings), args.repetitions)
    products = max(matrix_product_rate(torch.device("cpu"), torch.float32) for _ in range(args.repetitions))
    limit = products / (GFLOP_AT_224 * 1e9 * (image_size / 224) ** 2)
    machine = f"CPU, {torch.get_num_threads()} threads"
    report = {"device": machine, "platform": platform.platform(), "torch": str(torch.__version__),
              "image_size": image_size, "matrix_products_gflops": round(products / 1e9, 1),
              "per_second": speeds}  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(f"{machine}, torch {torch.__version__}, {image_size}x{image_size}")
    print(f"matrix products at {products / 1e9:.0f} GFLOP/s: {limit:.0f} images/s through the network\n")
    print("| per second, median (range) | (a) | (b) | (b) / (a) | (b) of the limit |\n|---|---|---|---|---|")
    for name, values in speeds.items():
        a, b = (statistics.median(values[who]) for who in "ab")
        spans = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in values.values()]
        share = f"{b / limit:.0%}" if name.startswith("search") else ""
        print(f"| {name} | {spans[0]} | {spans[1]} | {b / a:.2f} x | {share} |")


if __name__ == "__main__":
    main()
