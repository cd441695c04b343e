"""Where the images of a split are: on the device, or on the host, which sends the device one batch at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

IMAGES_ON = ("auto", "device", "host")


class HostImages:
    """Images on the host, often memory-mapped, of which a batch at a time is copied to the device.

    images  (M, 3, H, W) uint8 on the CPU
    index   (N,) int64 into `images`: those that count; None: all
    """

    def __init__(self, images: Tensor, index: Tensor | None = None):
        self.images, self.index = images.numpy(), np.arange(len(images)) if index is None else index.numpy()
        self.shape = (len(self.index), *images.shape[1:])  # (N, 3, H, W)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: Tensor, pin_memory: bool = False) -> Tensor:
        """The images (n, 3, H, W) with these numbers (n,), on the CPU."""
        images = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8, pin_memory=pin_memory)
        np.take(self.images, self.index[index.numpy()], 0, images.numpy(), mode="clip")  # "raise" would use a buffer
        return images


def place(images: Tensor, device: torch.device, images_on: str = "auto", index: Tensor | None = None
          ) -> Tensor | HostImages:  # fmt: skip
    """Images (M, 3, H, W) uint8, or only those at `index` (N,), on the device or the host: `images_on`, of IMAGES_ON.

    "auto" is the device if they take less than half of a GPU's free memory, and on a CPU do not have to be copied.
    There, memory-mapped images stay mapped.
    """
    if images_on == "auto":
        size, free = len(images if index is None else index) * images[0].numel(), free_memory(device)
        fits = free is None or size < free / 2
        images_on = "device" if fits and (device.type != "cpu" or index is None) else "host"
    if images_on == "host":
        return HostImages(images, index)
    return (images if index is None else images[index]).to(device)


def free_memory(device: torch.device) -> int | None:
    """Free memory of a GPU in bytes; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def batches_of(images: Tensor | HostImages, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The images (n, 3, H, W) of each index (n,) int64, which is where the images are, on the device.

    Those on the host are gathered one batch ahead, by a thread.
    """
    if isinstance(images, Tensor):
        yield from (images[index] for index in indices)
        return
    is_cuda = device.type == "cuda"

    def send(index: Tensor) -> Tensor:
        """To a GPU without waiting: on its default stream, which then uses the batch; torch keeps the pinned memory."""
        return images.take(index, pin_memory=is_cuda).to(device, non_blocking=is_cuda)

    with ThreadPoolExecutor(1) as thread:
        pending = deque()
        for index in indices:
            pending.append(thread.submit(send, index))
            if len(pending) == 2:
                yield pending.popleft().result()
        yield from (last.result() for last in pending)
