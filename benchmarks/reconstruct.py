"""Top-9 search and reconstructions: (a) a script as usually written, (b) this project, in turn and in one run.

python benchmarks/reconstruct.py --ckpt checkpoints/model.pt --data FOLDER

(a) reads, resizes and passes one picture at a time through torchvision's resnet18 with forward hooks, and reconstructs
one unit at a time with Captum's Deconvolution and GuidedBackprop. (b) does the same, crops and patches included, as in
visualizer.py. One reconstruction by one rule counts as one tile. (a) takes the same time for every tile, so it gets the
tiles of a few channels. (b) gets many channels, because it traces an image once for all channels that show it.
Needs captum (requirements-dev.txt). Runs on the CPU.
"""

import json
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
from analysis.activations import search, split_dead_channels
from analysis.channels import inspect_channels
from analysis.inspection import Inspection, inspect
from analysis.settings import Settings
from dataset.folders import DataError
from runtime.checkpoint import CheckpointError
from runtime.command_line import ArgumentParser, number, one_line_errors
from runtime.device import keep_freed_memory

MODULES = {"conv1": "relu", "conv5_x": "layer4"}  # stage -> torchvision's module
Task = tuple[int, Callable[[], object]]  # how many images or tiles, and the call


def parse_args(argv=None):
    """The flags of the command line."""
    parser, count = ArgumentParser(__doc__), number(int, least=1)
    add = parser.add_argument
    add("--ckpt", required=True, help="a model.pt of train.py")
    add("--data", required=True, help="a folder with test/<class>/*")
    add("--root", help="folder of decoded images (default: as trained)")
    add("--images", type=number(int, least=9), default=192, help="images to search per repetition")
    add("--channels", type=count, default=48, help="channels of (b) per stage, evenly spread")
    add("--usual-channels", type=count, default=4, help="the first of them, for (a)")
    add("--limit", type=number(int, least=9), help="test images to find the strongest in (default: all)")
    add("--repetitions", type=count, default=5, help="measurements of each")
    add("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


class UsualScript:
    """(a): torchvision, hooks and Captum, one image of an ImageFolder at a time."""

    def __init__(self, inspection: Inspection, folder: Path):
        info = inspection.metadata
        self.network = torchvision.models.resnet18(num_classes=len(info.classes)).eval()
        self.network.load_state_dict(inspection.network.state_dict())
        for module in self.network.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # Captum's hooks need this
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(info.mean, info.std)]
        self.dataset = torchvision.datasets.ImageFolder(folder, v2.Compose([v2.Resize(info.image_size), *to_tensor]))

    def search(self, indices: list[int]) -> None:
        """The nine strongest images of every channel, with the position of the strongest unit."""
        peaks, hooks = {stage: [] for stage in MODULES}, []
        for stage, name in MODULES.items():
            keep = lambda module, inputs, output, stage=stage: peaks[stage].append(output[0].flatten(1).max(1))  # noqa: E731
            hooks.append(self.network.get_submodule(name).register_forward_hook(keep))
        with torch.no_grad():
            for index in indices:
                self.network(self.dataset[index][0][None])
        for stage in MODULES:
            torch.stack([peak.values for peak in peaks[stage]]).topk(9, 0)
        for hook in hooks:
            hook.remove()

    def reconstruct(self, stage: str, tiles: list[tuple[int, int, int, int]]) -> None:
        """Reconstruct tiles (image, channel, row, column), one at a time, by two rules."""
        children = list(self.network.named_children())
        last = [name for name, _ in children].index(MODULES[stage])
        part = torch.nn.Sequential(*(module for _, module in children[: last + 1]))
        for attribution in (Deconvolution(part), GuidedBackprop(part)):
            for index, *unit in tiles:
                attribution.attribute(self.dataset[index][0][None].requires_grad_(), target=tuple(unit))


def make_tasks(args, inspection: Inspection, settings: Settings) -> dict[str, tuple[Task, Task]]:
    """name -> the usual script's task, this project's task."""
    usual = UsualScript(inspection, Path(args.data) / "test")
    chosen = torch.linspace(0, len(inspection.images) - 1, args.images).long()

    def ours() -> None:
        batches = (inspection.inputs(inspection.images[part]) for part in chosen.split(settings.batch_size))
        search(inspection.network, batches, len(chosen), MODULES)

    tasks = {"search, images": ((len(chosen), lambda: usual.search(chosen.tolist())), (len(chosen), ours))}
    for stage, top in inspection.search.top.items():
        alive, _ = split_dead_channels(top, range(len(top.scores)))
        channels = [alive[n] for n in torch.linspace(0, len(alive) - 1, min(args.channels, len(alive))).long()]
        tiles = [
            (int(image), channel, *divmod(int(position), top.map_size[1]))
            for channel in channels[: args.usual_channels]
            for image, position in zip(inspection.top_images(top, channel), top.positions[channel], strict=True)
        ]
        # one after the other, as in visualizer.py, which keeps no more than a page of them
        reconstruct = lambda stage=stage, channels=channels: deque(  # noqa: E731
            inspect_channels(inspection, settings, stage, channels), maxlen=0
        )
        usually = lambda stage=stage, tiles=tiles: usual.reconstruct(stage, tiles)  # noqa: E731
        tasks[f"{stage}, tiles"] = ((2 * len(tiles), usually), (2 * 9 * len(channels), reconstruct))
    return tasks


def measure(tasks: dict[str, tuple[Task, Task]], repetitions: int) -> dict[str, dict[str, list[float]]]:
    """name -> per second by (a) and by (b), one value per repetition after a warm-up."""
    speeds = {name: {"a": [], "b": []} for name in tasks}
    for repetition in range(repetitions + 1):
        for name, both in tasks.items():
            for letter, (count, action) in zip("ab", both, strict=True):
                started = time.perf_counter()
                action()
                if repetition > 0:
                    speeds[name][letter].append(count / (time.perf_counter() - started))
    return speeds


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    settings = Settings(stages=tuple(MODULES), limit=args.limit)
    with one_line_errors(DataError, CheckpointError):
        inspection = inspect(args.ckpt, settings, "cpu", args.data, args.root)
    size = inspection.metadata.image_size
    report = {"device": f"CPU, {torch.get_num_threads()} threads", "torch": str(torch.__version__), "image_size": size}
    report["per_second"] = measure(make_tasks(args, inspection, settings), args.repetitions)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['device']}, torch {report['torch']}, {size}x{size}\n")
    print("| per second, median (range) | (a) | (b) | (b) / (a) |\n|---|---|---|---|")
    for name, values in report["per_second"].items():
        a, b = (statistics.median(values[letter]) for letter in "ab")
        ranges = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in values.values()]
        print(f"| {name} | {' | '.join(ranges)} | {b / a:.2f} x |")


if __name__ == "__main__":
    main()
