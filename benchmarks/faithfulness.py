"""Score the importance maps of a class on many test images, and check the score itself.

python benchmarks/faithfulness.py --data FOLDER --images 1000 --curves curves.pt --json scores.json

It prints the scores and their differences image by image; how often the interval of 100 images, drawn from all, covers
the mean score of all; and for drawn shapes, how much of the most important fifth of the blocks lies on the object.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from analysis.blocks import LEAST_VALUES, block_means, block_side, estimate
from analysis.importance import METHODS
from analysis.inspection import Inspection, add_preprocessing, add_test_images, load_inspection
from dataset import shapes, sources
from figures.faithfulness import RIVALS, STEPS, block_ranks, class_curves, class_scores, spread_images
from runtime import checkpoint
from runtime.command_line import ArgumentParser, number, one_line_errors
from runtime.device import keep_freed_memory

DRAWS, DRAWN = 100, 100  # of the interval's check: repetitions, and images in each


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--ckpt", default=str(checkpoint.SHIPPED), metavar="PATH", help="a model.pt of train.py")
    add("--data", help=f"{', '.join(sources.DATASETS)}, or a folder (default: as trained)")
    add("--root", help="folder of CIFAR-10 and of decoded images (default: as trained)")
    add("--images", type=number(int, least=LEAST_VALUES), default=1000, help="number of test images, evenly spread")
    add("--batch-size", type=number(int, least=1), default=25, help="images per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--curves", metavar="FILE", help="save the curves there after every batch; a second call goes on from them")
    add("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def resumable_curves(inspection: Inspection, images: Tensor, batch_size: int, file: str | None) -> Tensor:
    """`class_curves`, saved in the file after every batch; what it holds already is not computed again.

    Raises CheckpointError when the file is of another network, or of other images or methods.
    """
    digest = hashlib.sha256(repr([images.tolist(), *METHODS, STEPS]).encode())
    for values in (*inspection.network.state_dict().values(), inspection.images[images]):
        digest.update(values.cpu().contiguous().numpy())
    saved = {"digest": digest.hexdigest(), "curves": torch.empty(0, len(METHODS), 2, STEPS)}
    if file and Path(file).exists() and (saved := checkpoint.load(file)).get("digest") != digest.hexdigest():
        raise checkpoint.CheckpointError(f"{file} is of another network, other images or methods: pass another")
    for part in tqdm(images[len(saved["curves"]) :].split(batch_size), "curves", unit="batches", disable=None):
        saved["curves"] = torch.cat([saved["curves"], class_curves(inspection, part, batch_size=batch_size)])
        if file:
            checkpoint.save(saved, file)
    return saved["curves"]


def coverage(scores: Tensor) -> int:
    """In how many of DRAWS draws of DRAWN images, with replacement, the interval contains the mean of scores (n,)."""
    random, mean = np.random.default_rng(0), scores.double().mean().item()
    intervals = [estimate(scores[random.choice(len(scores), DRAWN)]) for _ in range(DRAWS)]
    return sum(interval["low"] <= mean <= interval["high"] for interval in intervals)


def shares_on_object(inspection: Inspection, images: Tensor, masks: Tensor) -> tuple[dict[str, float], float]:
    """method -> share of the most important fifth of the blocks on the object, masks (N, S, S) bool; and of all."""
    side = block_side(inspection.metadata.image_size)
    area = block_means(inspection.resized(255 * masks[:, None].expand(-1, 3, -1, -1).byte())[:, 0], side)  # (N, n)
    ranks = torch.cat([block_ranks(inspection, part)[2].cpu() for part in images.split(25)])  # (N, M, n)
    fifth = ranks.shape[2] // 5
    shares = ((ranks < fifth) * area[:, None]).sum(2).mean(0) / fifth
    return dict(zip(METHODS, shares.tolist(), strict=True)), area.mean().item()


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    keep_freed_memory()
    with one_line_errors(sources.DataError, checkpoint.CheckpointError):
        inspection = load_inspection(args.ckpt, args.device, args.data, args.root)
        inspection = add_test_images(add_preprocessing(inspection))
        images = spread_images(inspection, args.images)
        curves = resumable_curves(inspection, images, args.batch_size, args.curves)
    scores, side = class_scores(curves), block_side(inspection.metadata.image_size)
    report = {"images": len(images), "scores": scores}
    print(f"{len(images):,} images, blocks of {side}x{side} pixels\n")
    print(f"| method | score | minus {' | minus '.join(RIVALS)} |\n|---|{'---|' * (1 + len(RIVALS))}")
    for name, score in scores.items():
        estimates = [score | {"mean": score["score"]}, *score["minus"].values()]
        print("|", name, *("| {mean:.3f} ({low:.3f} to {high:.3f})".format(**each) for each in estimates), "|")
    if len(images) > DRAWN:
        by_image = (curves[:, :, 1] - curves[:, :, 0]).mean(2)  # (N, M)
        report["coverage"] = {name: coverage(by_image[:, n]) for n, name in enumerate(METHODS)}
        print(f"\nintervals of {DRAWN} images that cover the mean of all, of {DRAWS}: {report['coverage']}")
    if inspection.source == "shapes":
        masks = torch.from_numpy(shapes.draw_shapes("test")[2])[images]
        report["on_object"], report["object"] = shares, size = shares_on_object(inspection, images, masks)
        print(f"\nshare of the most important fifth of the blocks on the object ({size:.3f} of the image)")
        print("\n".join(f"{name}: {shares[name]:.3f}" for name in scores))
    if args.json:
        with checkpoint.atomic_file(args.json) as stream:
            stream.write(json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
