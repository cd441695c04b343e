"""Score the importance maps of a class on many test images, and check the score itself.

python benchmarks/faithfulness.py --data FOLDER --images 1000 --out runs/faithfulness
python benchmarks/faithfulness.py --ckpt runs/shapes/model.pt --images 100 --out runs/faithfulness-shapes

Every part of the images is stored in --out; run again, the script continues with the missing ones. It prints

- the table of scores;
- how often the interval of 100 images, drawn from all that were computed, covers their mean score;
- for drawn shapes, whose object is known: how much of the most important fifth of the blocks lies on it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from analysis.blocks import block_means, block_side, estimate
from analysis.importance import METHODS
from analysis.inspection import Inspection, add_preprocessing, add_test_images, load_inspection
from dataset import sources
from dataset.shapes import draw_shapes
from figures.faithfulness import block_ranks, class_curves, class_scores, spread_images
from runtime.checkpoint import SHIPPED, CheckpointError, atomic_file
from runtime.command_line import ArgumentParser, number, one_line_errors, output_folder

PARTS = 20
DRAWS, DRAWN = 100, 100  # of the interval's check: repetitions, and images in each


def parse_args(argv=None):
    """The flags of the command line; a wrong use ends in one line and exit code 2."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--ckpt", default=str(SHIPPED), metavar="PATH", help="a model.pt of train.py")
    add("--data", help=f"{', '.join(sources.DATASETS)}, or a folder (default: as trained)")
    add("--root", help="folder of CIFAR-10 (default: as trained)")
    add("--images", type=number(int, least=2), default=1000, help="number of test images, evenly spread")
    add("--batch-size", type=number(int, least=1), default=25, help="images per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--out", default="runs/faithfulness", help="folder of the parts and of scores.json")
    return parser.parse_args(argv)


def compute(inspection: Inspection, images: Tensor, folder: Path, batch_size: int) -> tuple[Tensor, Tensor]:
    """The images and their `class_curves`, part by part; those of every part that is not stored yet are computed.

    Of PARTS parts, or as many as there are images, part n holds every PARTS-th image from image n on.
    """
    count = min(PARTS, len(images))
    parts = []
    for n in tqdm(range(count), desc="parts", leave=False, disable=None):
        file = folder / f"part-{n:02}.pt"
        if not file.exists():
            curves = class_curves(inspection, images[n::count], batch_size=batch_size)
            with atomic_file(file) as stream:
                torch.save({"images": images[n::count], "curves": curves}, stream)
        parts.append(torch.load(file, weights_only=True))
        if not torch.equal(parts[-1]["images"], images[n::count]):
            sys.exit(f"error: {file} holds other images: pass another --out")
    return torch.cat([part["images"] for part in parts]), torch.cat([part["curves"] for part in parts])


def coverage(scores: Tensor) -> int:
    """In how many of DRAWS draws of DRAWN images, with replacement, the interval contains the mean of scores (n,)."""
    random, mean = np.random.default_rng(0), scores.double().mean().item()
    intervals = [estimate(scores[random.choice(len(scores), DRAWN)]) for _ in range(DRAWS)]
    return sum(each.low <= mean <= each.high for each in intervals)


def on_object(inspection: Inspection, images: Tensor, masks: Tensor) -> tuple[dict[str, float], float]:
    """method -> share of the most important fifth of the blocks' area on the object; and the object's share of all.

    masks: (N, S, S) bool, of the stored images
    """
    side = block_side(inspection.metadata.image_size)
    shares, size = [], []
    for part in torch.arange(len(images)).split(25):
        _, _, ranks = block_ranks(inspection, images[part])
        resized = inspection.resized(masks[part][:, None].expand(-1, 3, -1, -1).to(torch.uint8) * 255)
        area = block_means(resized[:, 0], side)  # (N, n) in 0..1
        fifth = ranks.shape[2] // 5
        shares.append(((ranks.cpu() < fifth) * area[:, None]).sum(2) / fifth)
        size.append(area.mean(1))
    means = torch.cat(shares).mean(0).tolist()
    return dict(zip(METHODS, means, strict=True)), torch.cat(size).mean().item()


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    with one_line_errors(sources.DataError, CheckpointError):
        folder = output_folder(args.out)
        loaded = load_inspection(args.ckpt, args.device, args.data, args.root)
        inspection = add_test_images(add_preprocessing(loaded))
        images = spread_images(inspection, args.images)
        computed, curves = compute(inspection, images, folder, args.batch_size)
    scores, block = class_scores(curves), block_side(inspection.metadata.image_size)
    numbers = {name: {"mean": each["score"], "low": each["low"], "high": each["high"]} for name, each in scores.items()}
    content = {"images": len(computed), "scores": numbers}
    print(f"{len(computed):,} images, blocks of {block}x{block} pixels\n")
    print("| method | score (95 % interval) | beyond the random map |\n|---|---|---|")
    for name, score in numbers.items():
        cells = ("{mean:.3f} ({low:.3f} to {high:.3f})".format(**each) for each in (score, scores[name]["over_random"]))
        print(f"| {name} | {' | '.join(cells)} |")
    if len(computed) > DRAWN:
        by_image = (curves[:, :, 1] - curves[:, :, 0]).mean(2)  # (N, M)
        content["coverage"] = {name: coverage(by_image[:, n]) for n, name in enumerate(METHODS)}
        print(f"\nintervals of {DRAWN} images that cover the mean of all, of {DRAWS}: {content['coverage']}")
    if inspection.source == "shapes":
        masks = torch.from_numpy(draw_shapes("test")[2])[images]
        shares, size = on_object(inspection, images, masks)
        content |= {"on_object": shares, "object": size}
        print(f"\nshare of the most important fifth of the blocks on the object ({size:.3f} of the image)")
        print("\n".join(f"{name}: {shares[name]:.3f}" for name in scores))
    with atomic_file(folder / "scores.json") as stream:
        stream.write(json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
