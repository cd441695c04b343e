"""The device, its precision, and the memory allocator."""

import ctypes
import sys
from collections.abc import Callable

import torch

from runtime.checkpoint import first_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h; bytes
# Below, the weight gradient of a strided convolution of one pixel is uninitialised memory in bf16 (CPU, torch 2.14)
SMALLEST_BF16_SIZE = 17


def pick_device(name: str, gpu: int = 0) -> torch.device:
    """A device by torch's name; "cuda" is the GPU of this index, "auto" the same or, without CUDA, the CPU.

    A GPU becomes torch's current one. Raises OSError if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{gpu}" if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except Exception as error:  # every backend has its own way to fail
        devices = ", ".join(["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))])
        message = f"device {name!r} does not work ({first_line(error)}): pass --device cpu (found: {devices})"
        raise OSError(message) from error
    return device


def pick_precision(name: str, device: torch.device, image_size: int = 224) -> str:
    """The precision "auto" stands for: bf16 on devices that multiply it natively, fp32 elsewhere.

    On a CPU, it is fp32 below an image size of SMALLEST_BF16_SIZE, in pixels, and a line says so.
    """
    if name == "auto":
        name = "bf16" if has_native_bf16(device) else "fp32"
    if name == "bf16" and device.type == "cpu" and image_size < SMALLEST_BF16_SIZE:
        print(f"note: fp32, because bf16 gradients are wrong on CPUs below {SMALLEST_BF16_SIZE} pixels")
        return "fp32"
    return name


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32: NVIDIA Ampere or newer; CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    private = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # another version may not have them
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in private)


def bf16_if_native(device: torch.device) -> torch.autocast:
    """Context: forward passes in bf16 where that is faster, with a relative error of about 0.004; in fp32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_native_bf16(device))


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors, because the next iteration allocates the same sizes again.

    By default glibc returns blocks above 32 MB to the system, which clears their pages at the next allocation: a tenth
    of an iteration at 224x224 on a CPU. Does nothing on other systems.
    """
    # Every successful call ends glibc's own adaptation of both thresholds, so the trim threshold is set only after a
    # large mmap threshold was accepted; glibc before about 2.34 rejects 2**30.
    if (mallopt := _glibc("mallopt")) and any(mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Returns the memory of freed tensors to the system, wherever it lies between others. Only with glibc."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable | None:
    """A function of glibc; None on other systems, and with musl, which has none of them."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
