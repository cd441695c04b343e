"""Write a data set as PNG files, in train/<class>/ and test/<class>/, for scripts that read folders.

python benchmarks/pictures.py --data cifar10 --out FOLDER
"""

import sys
from collections import Counter
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from dataset import sources
from runtime.command_line import ArgumentParser, number, one_line_errors


def write_pictures(data: str, root: str, out: Path, per_class: int | None = None) -> None:
    """Writes both splits, at most `per_class` images of each class and split; files that exist are replaced."""
    for split in ("train", "test"):
        images, labels, classes = sources.load(data, split, root)
        for name in classes:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        written = Counter()
        for image, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
            if per_class is None or written[label] < per_class:
                Image.fromarray(image).save(out / split / classes[label] / f"{written[label]:05}.png")
                written[label] += 1


def main(argv=None):
    """The script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", default="cifar10", choices=sources.DATASETS, help="data set")
    parser.add_argument("--root", default="data", help="folder that CIFAR-10 is downloaded to")
    parser.add_argument("--per-class", type=number(int, least=1), help="images per class and split (default: all)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="output folder")
    args = parser.parse_args(argv)
    with one_line_errors(sources.DataError):
        write_pictures(args.data, args.root, Path(args.out), args.per_class)


if __name__ == "__main__":
    main()
