"""A folder of pictures whose decoded store exceeds the machine's memory: starts, throughput, memory, two processes.

python benchmarks/large_data.py --gigabytes 30          on a machine with less memory; takes twice that on the disk
python benchmarks/large_data.py --start FOLDER          only the time from the command to the first iteration

Linux only. The pictures are drawn shapes of 256x224 in JPEG files, many names for each; they are removed afterwards.
Measured are the first and the second start, training on all pictures after the store has been dropped from the page
cache, anonymous memory (RssAnon) and the shared mapping, and on a few pictures --images-on host against device, in
turn. Unknown flags go to train.py.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
import commands
from memory import Memory
from run_history import read_history, training_seconds

from dataset.placement import HostImages, available_memory
from dataset.shapes import CLASSES, draw_shapes
from dataset.store import load_folder
from runtime.checkpoint import atomic_file
from runtime.command_line import ArgumentParser, number

TRAIN = Path(__file__).parent.parent / "train.py"
WIDTH, HEIGHT = 256, 224
TEST_IMAGES = 100
LIMIT_SECONDS = 4 * 3600


def parse_args(argv=None):
    """The flags of the command line, and all others, which go to train.py."""
    parser, count = ArgumentParser(__doc__), number(int, least=1)
    add, positive = parser.add_argument, number(float, above=0)
    add("--gigabytes", type=positive, default=30.0, help="size of the store")
    add("--small", type=number(int, least=100), default=2000, help="pictures for host against device")
    add("--steps", type=count, default=300, help="iterations on all pictures")
    add("--log-every", type=count, default=20, help="iterations per log line")
    add("--seconds", type=positive, default=20.0, help="least duration of a repetition of host against device")
    add("--repetitions", type=count, default=3, help="of host against device")
    add("--image-size", type=count, default=224, help="side of the network's input in pixels")
    add("--batch-size", type=number(int, least=2), default=32, help="images per iteration")
    add("--out", default="runs/large-data", help="pictures, stores and runs are put into a new folder there")
    add("--keep", action="store_true", help="do not remove that new folder")
    add("--start", metavar="FOLDER", help="only time two starts on this folder")
    add("--json", metavar="FILE", help="also write the figures there, as they come")
    return parser.parse_known_args(argv)


def draw_pictures(folder: Path, train: int, test: int = TEST_IMAGES, distinct: int = 2000) -> None:
    """Writes `train` + `test` pictures in JPEG files; beyond `distinct`, files get more names (hard links)."""
    for split, count in (("train", train), ("test", test)):
        images, labels, _ = draw_shapes(split)
        first = {}
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            shape = n % min(distinct, len(images))
            file = folder / split / CLASSES[labels[shape]] / f"{n}.jpg"
            if shape in first:
                os.link(first[shape], file)
            else:
                picture = Image.fromarray(images[shape].transpose(1, 2, 0))
                picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, quality=90)
                first[shape] = file


class Runner:
    """Runs train.py until a condition is met. args: of this script; settings: further flags for train.py."""

    def __init__(self, args, settings: list[str]):
        Path(args.out).mkdir(parents=True, exist_ok=True)
        self.args, self.settings, self.out = args, settings, Path(tempfile.mkdtemp(dir=Path(args.out).absolute()))
        self.log, self.run = self.out / "log", self.out / "run"

    def train(self, pictures: Path, root: str, until, *flags, processes: int = 1, log_every: int = 1) -> float:
        """Starts a run and ends it when `until()` is true; returns the seconds to its first history line."""
        shutil.rmtree(self.run, ignore_errors=True)
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [TRAIN, "--data", pictures, "--root", self.out / root, "--out", self.run, "--epochs", "1000000"]
        command += ["--image-size", self.args.image_size, "--batch-size", self.args.batch_size * processes]
        command += ["--log-every", log_every, *flags, *self.settings]
        started, first = time.monotonic(), []

        def watch() -> bool:
            if not first and read_history(self.run):
                first.append(time.monotonic() - started)
            return bool(first) and until()

        outcome = commands.run(command, self.log, LIMIT_SECONDS, saves=True, until=watch)
        if not outcome.satisfied:
            sys.exit(f"error: train.py: {outcome.reason()}")
        return first[0]

    def start_seconds(self, pictures: Path, root: str, *flags) -> float:
        """Seconds from the command to the end of the first iteration, to within 0.2 s."""
        return round(self.train(pictures, root, lambda: True, *flags), 1)

    def throughput(self, pictures: Path, root: str, where: str) -> float:
        """Images per second of training after the first log line."""
        images = self.args.log_every * self.args.batch_size

        def measured() -> list[float]:
            return training_seconds(self.run, images, 0)

        self.train(pictures, root, lambda: sum(measured()) >= self.args.seconds, "--images-on", where,
                   log_every=self.args.log_every)  # fmt: skip
        return images * len(measured()) / sum(measured())

    def decodings(self) -> int:
        """How often the training images have been decoded, by the output of all runs so far."""
        return self.log.read_text().count("decoding once: ") // 2


def drop_from_cache(file: Path) -> None:
    """Removes a file's pages from the page cache."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(pictures: Path, root: Path, image_size: int, batches: int = 20, batch_size: int = 32) -> float:
    """Images per second that the host gathers at random from a store that is not in the page cache."""
    images = HostImages(load_folder(pictures, "train", root, image_size).images)
    (file,) = root.glob("decoded/*/train.npy")
    drop_from_cache(file)
    index = torch.from_numpy(np.random.RandomState(0).permutation(len(images))[: batches * batch_size])
    started = time.monotonic()
    for part in index.split(batch_size):
        images.take(part)
    return len(index) / (time.monotonic() - started)


def measure(runner: Runner, report: dict, save) -> None:
    """All measurements, in order; `save` is called after each."""
    args, large, small = runner.args, runner.out / "pictures", runner.out / "few"
    count = int(args.gigabytes * 1e9 / (3 * args.image_size**2))
    started = time.monotonic()
    draw_pictures(large, count)
    draw_pictures(small, args.small)
    report |= {"pictures": count, "seconds_to_draw": round(time.monotonic() - started, 1)}
    save()

    report["first_start_seconds"] = runner.start_seconds(large, "large")
    save()
    report["second_start_seconds"] = runner.start_seconds(large, "large")
    save()
    report["disk_images_per_second"] = round(disk_rate(large, runner.out / "large", args.image_size), 1)
    (file,) = (runner.out / "large").glob("decoded/*/train.npy")
    report["store_bytes"] = file.stat().st_size

    for processes in (1, 2):
        drop_from_cache(file)
        memory = Memory(TRAIN, runner.run)

        def done(memory=memory) -> bool:
            memory.sample()
            return read_history(runner.run)[-1]["step"] >= args.steps

        runner.train(large, "large", done, "--images-on", "host", processes=processes, log_every=args.log_every)
        lines = [line for line in read_history(runner.run) if line["kind"] == "train"][1:]
        report[f"large_{processes}"] = {
            "images_per_second": [line["images_per_second"] for line in lines],
            "anonymous_bytes": memory.anonymous,
            "store_bytes_in_memory": memory.mapped,
            "share_of_them": round(memory.share, 3),
            "processes_seen": memory.processes,
        }
        save()
    report["decodings"] = runner.decodings()

    report |= {"host": [], "device": []}
    runner.start_seconds(small, "few")  # decodes
    for _ in range(args.repetitions):
        for where in ("device", "host"):
            report[where].append(round(runner.throughput(small, "few", where), 2))
            save()


def print_table(report: dict) -> None:
    """The table in Markdown."""
    print("| what | measured |\n|---|---|")
    for name, value in report.items():
        if isinstance(value, dict):
            speeds = value["images_per_second"]
            row = f"{statistics.median(speeds):.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f})" if speeds else ""
            row += f", {value['anonymous_bytes'] / 1e9:.2f} GB anonymous, {value['store_bytes_in_memory'] / 1e9:.2f} GB"
            value = f"{row} of the store mapped, {value['share_of_them']:.2f} of it counted here"
        elif isinstance(value, list) and value:
            value = f"{statistics.median(value):.1f} images/s ({min(value):.1f} to {max(value):.1f})"
        print(f"| {name} | {value} |")


def main(argv=None):
    """The script."""
    args, settings = parse_args(argv)
    runner = Runner(args, settings)
    report = {"cores": os.cpu_count(), "memory_available_bytes": available_memory(), "settings": " ".join(settings)}

    def save() -> None:
        if args.json:
            with atomic_file(args.json) as file:
                file.write((json.dumps(report, indent=1) + "\n").encode())

    try:
        if args.start:
            starts = [runner.start_seconds(Path(args.start).absolute(), "start") for _ in range(3)]
            report["start_seconds"] = starts
            print(f"first start {starts[0]} s, then {starts[1]} and {starts[2]} s")
        else:
            measure(runner, report, save)
            print_table(report)
        save()
    finally:
        if not args.keep:
            shutil.rmtree(runner.out)


if __name__ == "__main__":
    main()
