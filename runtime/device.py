"""The device, its precision, and the memory allocator."""

import ctypes
import sys

import torch


def pick_device(name: str, gpu: int = 0) -> torch.device:
    """A device by torch's name; "cuda" is the GPU of this index, "auto" the same or, without CUDA, the CPU.

    A GPU becomes torch's current one. Raises OSError if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{gpu}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except Exception as error:  # every backend has its own way to fail
        here = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise OSError(f"there is no device {name!r}: pass --device auto, or one of {', '.join(here)}") from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The precision "auto" stands for: bf16 on GPUs with native bf16 (NVIDIA Ampere or newer), fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return name


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors, because the next iteration allocates the same sizes again.

    By default glibc returns blocks above 32 MB to the system, which clears their pages at the next allocation: a tenth
    of an iteration at 224x224 on a CPU. Does nothing on other systems.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
        if mallopt:
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes, as malloc.h numbers them
            mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
