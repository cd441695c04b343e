"""The length of a run: epochs, iterations, and the image size of each epoch. A function of the epoch alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Epochs at growing image sizes."""

    sizes: tuple[tuple[int, int], ...]  # (image size in pixels, number of epochs at it), in order
    steps_per_epoch: int  # iterations
    total_steps: int  # iterations of the run, at most those of all epochs

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return sum(epochs for _, epochs in self.sizes)

    def image_size(self, epoch: int) -> int:
        """The image size of an epoch, counted from 0. Raises ValueError beyond the last."""
        for size, epochs in self.sizes:
            if epoch < epochs:
                return size
            epoch -= epochs
        raise ValueError(f"the plan {self.sizes} ends before this epoch")

    def cutout(self, side: int, image_size: int) -> int:
        """The side of the cutout at `image_size` if it is `side` at the last size; both in stored pixels.

        12 at 224 is 5 at 96. So it hides less of the picture at a smaller size: short runs there should not be starved.
        """
        return round(side * image_size / self.sizes[-1][0])
