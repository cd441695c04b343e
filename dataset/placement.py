"""Where the images of a split are: on the device, or on the host, which sends the device one batch at a time."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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

    def take(self, index: Tensor, out: Tensor | None = None) -> Tensor:
        """The images (n, 3, H, W) with these numbers (n,), on the CPU; `out` is filled if it is given."""
        out = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8) if out is None else out
        np.take(self.images, self.index[index.numpy()], 0, out.numpy(), mode="clip")  # "raise" would use a buffer
        return out


def place(images: Tensor, device: torch.device, images_on: str = "auto", index: Tensor | None = None
          ) -> Tensor | HostImages:  # fmt: skip
    """Images (M, 3, H, W) uint8, or only those at `index` (N,), on the device or the host: `images_on`, of IMAGES_ON.

    "auto" is the device if they take less than half of its free memory, and on a CPU do not have to be copied. There,
    memory-mapped images stay mapped.
    """
    if images_on == "auto":
        size, free = len(images if index is None else index) * images[0].numel(), free_memory(device)
        fits = free is None or size < free / 2
        images_on = "device" if fits and (device.type != "cpu" or index is None) else "host"
    if images_on == "host":
        return HostImages(images, index)
    return (images if index is None else images[index]).to(device)


def batches_of(images: Tensor | HostImages, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The images (n, 3, H, W) of each index (n,), on the device; those on the host one batch ahead, by a thread.

    indices: int64, where the images are
    """
    if isinstance(images, Tensor):
        yield from (images[index] for index in indices)
        return
    if device.type == "cuda":
        transfer = PinnedTransfer(images, device)
        send, receive = transfer.send, transfer.receive
    else:  # shares the host's memory, or has no streams
        send, receive = (lambda index: images.take(index).to(device)), (lambda batch: batch)
    with ThreadPoolExecutor(1) as thread:
        pending = deque()
        for index in indices:
            pending.append(thread.submit(send, index))
            if len(pending) == 2:
                yield receive(pending.popleft().result())
        yield from (receive(last.result()) for last in pending)


class PinnedTransfer:
    """Batches from the host to a CUDA GPU, through two buffers of pinned memory and on a stream of their own."""

    def __init__(self, images: HostImages, device: torch.device):
        self.images, self.device, self.stream = images, device, torch.cuda.Stream(device)
        self.slots: list[tuple[Tensor, torch.cuda.Event] | None] = [None, None]

    def send(self, index: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """In the thread: a batch that is on its way, and the event of its arrival."""
        buffer, arrived = self.slots.pop(0) or (None, None)
        if buffer is None or len(buffer) != len(index):
            buffer = torch.empty(len(index), *self.images.shape[1:], dtype=torch.uint8, pin_memory=True)
        else:
            arrived.synchronize()  # of the batch before the last one, which the buffer still held
        self.images.take(index, buffer)
        with torch.cuda.stream(self.stream):
            sent, arrived = buffer.to(self.device, non_blocking=True), torch.cuda.Event()
            arrived.record(self.stream)
        self.slots.append((buffer, arrived))
        return sent, arrived

    def receive(self, sent: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        """Where the batch is used: the stream there waits for its arrival, the host does not."""
        images, arrived = sent
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(arrived)
        images.record_stream(stream)  # its memory is not used again before
        return images


def free_memory(device: torch.device) -> int | None:
    """Free memory of the device in bytes; None where the system does not report it."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def available_memory() -> int | None:
    """Available main memory in bytes, without swapping; None where the system does not report it."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
