"""A loaded split of a data set."""

from dataclasses import dataclass, replace

from torch import Tensor

from dataset.preprocess import color_histogram, mean_and_std_of_histogram


@dataclass(frozen=True)
class Split:
    """Images and labels of a split, on the CPU.

    images     (N, 3, H, W) uint8; a folder's are memory-mapped, and must not be written to
    labels     (N,) int64 into `classes`
    classes    names
    histogram  `color_histogram` of the images, where it is known
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    histogram: Tensor | None = None

    def with_histogram(self) -> "Split":
        """The split with its histogram, which is counted if it is not known."""
        return self if self.histogram is not None else replace(self, histogram=color_histogram(self.images))

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """`dataset.preprocess.mean_and_std` of the images."""
        return mean_and_std_of_histogram(self.with_histogram().histogram)
