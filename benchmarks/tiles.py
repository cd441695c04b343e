"""A training step in bf16 on a CPU, with and without conv5_x's convolutions as one large map (TiledConv2d), in turn.

python benchmarks/tiles.py
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from dataset.batches import Batches
from dataset.preprocess import Preprocess
from network import ResNet18
from runtime.command_line import ArgumentParser, number
from runtime.device import keep_freed_memory
from training.acceleration import tile_convolutions
from training.optimizer import Optimization, sgd
from training.step import TrainStep


def make_step(image_size: int, batch_size: int, tiled: bool):
    """A step on noise of 32x32 pixels, enlarged to the image size, as a function without arguments."""
    torch.manual_seed(0)
    network = ResNet18().to(memory_format=torch.channels_last).train()
    if tiled:
        tile_convolutions(network)
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(batch_size) % 10
    batches = Batches(images, labels, Preprocess(image_size, [0.5] * 3, [0.25] * 3), batch_size, seed=0)
    step, rows = TrainStep(network, sgd(network, Optimization()), batches, "bf16"), batches.plan(0)[0]
    return lambda: step(rows)


def main(argv=None):
    """The script."""
    parser = ArgumentParser(__doc__)
    count = number(int, least=1)
    parser.add_argument("--sizes", type=count, nargs="+", default=[64, 96, 128, 160, 224], help="image sizes in pixels")
    parser.add_argument("--batch-size", type=count, default=128, help="images per iteration")
    parser.add_argument("--repetitions", type=count, default=15, help="timed iterations of each")
    args = parser.parse_args(argv)
    keep_freed_memory()
    for size in args.sizes:
        steps = [make_step(size, args.batch_size, tiled) for tiled in (False, True)]
        seconds = [[], []]
        for repetition in range(args.repetitions + 2):
            for step, times in zip(steps, seconds, strict=True):
                started = time.perf_counter()
                step().sum().item()
                if repetition >= 2:  # the first two warm up
                    times.append(time.perf_counter() - started)
        plain, tiled = (args.batch_size / statistics.median(times) for times in seconds)
        print(f"{size} px: {plain:.0f} images/s plain, {tiled:.0f} tiled: {tiled / plain:.2f} x", flush=True)


if __name__ == "__main__":
    main()
