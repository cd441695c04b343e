"""What the scripts take from the machine: a device, the precision it is good at, and its memory."""

import ctypes
import sys

import torch


def pick_device(name: str, gpu: int = 0) -> torch.device:
    """A device by torch's name; "auto" is the CUDA GPU of this number, as is "cuda", or else the CPU.

    Raises OSError when it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{gpu}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # every backend has its own way to fail
        here = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise OSError(f"there is no device {name!r}: pass --device auto, or one of {', '.join(here)}") from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Makes of "auto" bf16 on GPUs that multiply it natively (NVIDIA's from Ampere on), and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return name


def keep_freed_memory() -> None:
    """Has the C library keep the memory of freed tensors: the next iteration needs as much again.

    Otherwise glibc gives blocks of more than 32 MB back at once, and the system clears each page of them anew whenever
    they are asked for: a tenth of an iteration's time at 224x224 on a CPU. Does nothing elsewhere than on Linux.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
        if mallopt:
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes, as malloc.h numbers them
            mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
