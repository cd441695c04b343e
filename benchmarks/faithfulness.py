"""Score the importance maps of a class on many test images, and check the score itself.

python benchmarks/faithfulness.py --data FOLDER --images 1000 --json scores.json
python benchmarks/faithfulness.py --ckpt runs/shapes/model.pt --images 100

It prints

- the table of scores, those of edges and of a random map among them;
- how often the interval of 100 images, drawn from all that were computed, covers their mean score;
- for drawn shapes, whose object is known: how much of the most important fifth of the blocks lies on it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from analysis.blocks import block_means, block_side, estimate
from analysis.importance import METHODS
from analysis.inspection import Inspection, add_preprocessing, add_test_images, load_inspection
from dataset import sources
from dataset.shapes import draw_shapes
from figures.faithfulness import block_ranks, class_curves, class_scores, spread_images
from runtime.checkpoint import SHIPPED, CheckpointError, atomic_file
from runtime.command_line import ArgumentParser, number, one_line_errors

DRAWS, DRAWN = 100, 100  # of the interval's check: repetitions, and images in each


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--ckpt", default=str(SHIPPED), metavar="PATH", help="a model.pt of train.py")
    add("--data", help=f"{', '.join(sources.DATASETS)}, or a folder (default: as trained)")
    add("--root", help="folder of CIFAR-10 and of decoded images (default: as trained)")
    add("--images", type=number(int, least=2), default=1000, help="number of test images, evenly spread")
    add("--batch-size", type=number(int, least=1), default=25, help="images per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def coverage(scores: Tensor) -> int:
    """In how many of DRAWS draws of DRAWN images, with replacement, the interval contains the mean of scores (n,)."""
    random, mean = np.random.default_rng(0), scores.double().mean().item()
    intervals = [estimate(scores[random.choice(len(scores), DRAWN)]) for _ in range(DRAWS)]
    return sum(interval.low <= mean <= interval.high for interval in intervals)


def shares_on_object(inspection: Inspection, images: Tensor, masks: Tensor) -> tuple[dict[str, float], float]:
    """method -> share of the most important fifth of the blocks' area on the object; and the object's share of all.

    images: indices (N,) int64 in the test split; masks: (N, S, S) bool, of the stored images
    """
    side = block_side(inspection.metadata.image_size)
    shares, sizes = [], []
    for part in torch.arange(len(images)).split(25):
        _, _, ranks = block_ranks(inspection, images[part])
        resized = inspection.resized(masks[part][:, None].expand(-1, 3, -1, -1).to(torch.uint8) * 255)
        area = block_means(resized[:, 0], side)  # (N, n) in 0..1
        fifth = ranks.shape[2] // 5
        shares.append(((ranks.cpu() < fifth) * area[:, None]).sum(2) / fifth)
        sizes.append(area.mean(1))
    means = torch.cat(shares).mean(0).tolist()
    return dict(zip(METHODS, means, strict=True)), torch.cat(sizes).mean().item()


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    with one_line_errors(sources.DataError, CheckpointError):
        loaded = load_inspection(args.ckpt, args.device, args.data, args.root)
        inspection = add_test_images(add_preprocessing(loaded))
        images = spread_images(inspection, args.images)
        curves = class_curves(inspection, images, batch_size=args.batch_size)
    scores, block = class_scores(curves), block_side(inspection.metadata.image_size)
    numbers = {name: {key: score[of] for key, of in (("mean", "score"), ("low", "low"), ("high", "high"))}
               for name, score in scores.items()}  # fmt: skip
    report = {"images": len(images), "scores": numbers}
    print(f"{len(images):,} images, blocks of {block}x{block} pixels\n")
    print("| method | score (95 % interval) | beyond the random map |\n|---|---|---|")
    for name, score in numbers.items():
        cells = ("{mean:.3f} ({low:.3f} to {high:.3f})".format(**each) for each in (score, scores[name]["over_random"]))
        print(f"| {name} | {' | '.join(cells)} |")
    if len(images) > DRAWN:
        by_image = (curves[:, :, 1] - curves[:, :, 0]).mean(2)  # (N, M)
        report["coverage"] = {name: coverage(by_image[:, n]) for n, name in enumerate(METHODS)}
        print(f"\nintervals of {DRAWN} images that cover the mean of all, of {DRAWS}: {report['coverage']}")
    if inspection.source == "shapes":
        shares, size = shares_on_object(inspection, images, torch.from_numpy(draw_shapes("test")[2])[images])
        report |= {"on_object": shares, "object": size}
        print(f"\nshare of the most important fifth of the blocks on the object ({size:.3f} of the image)")
        print("\n".join(f"{name}: {shares[name]:.3f}" for name in scores))
    if args.json:
        with atomic_file(args.json) as stream:
            stream.write(json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
