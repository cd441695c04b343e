"""The limits of a machine: rates of matrix products and of copies; and what the machine is.

python benchmarks/hardware_limits.py --precisions fp32 bf16

A training step cannot be faster than its matrix products. Its kernels run one after the other, each at the full rate
of products or of copies, so a second limit adds the memory traffic. On GPUs torch's fp32 convolutions use TF32.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from argparse import BooleanOptionalAction
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision

sys.path.insert(0, str(Path(__file__).parent.parent))
from network import ResNet18
from runtime.command_line import ArgumentParser, one_line_errors
from runtime.device import pick_device, pick_precision

GFLOP_AT_224 = 10.65  # per image, forward and backward; proportional to the number of pixels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(iterate, steps: int, device: torch.device) -> float:
    """Duration of `steps` calls, seconds."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        iterate()
    synchronize(device)
    return time.perf_counter() - started


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best FLOP/s on square matrix products in this precision, in several sizes.

    Each is also asked for as a 1x1 convolution, the same product by another library (oneDNN or cuDNN): on some CPUs it
    is the faster by far.
    """
    best = 0.0
    for size in (2048, 4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        pixels = a.view(1, 32, size // 32, size).permute(0, 3, 1, 2)  # channels_last: a row is a pixel
        kernel = b.view(size, size, 1, 1)
        for product in (lambda a=a, b=b: a @ b, lambda x=pixels, w=kernel: F.conv2d(x, w)):
            timed(product, 3, device)
            best = max(best, *(5 * 2 * size**3 / timed(product, 5, device) for _ in range(3)))
    return best


def copy_rate(device: torch.device) -> float:
    """The device's bytes per second, read and written, of copies of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed(lambda: target.copy_(source), 3, device)
    return max(5 * 2 * 2**30 / timed(lambda: target.copy_(source), 5, device) for _ in range(3))


def traffic(image_size: int, precision: str) -> float:
    """Bytes that an image's iteration must move when every kernel reads and writes its maps once.

    A convolution: its input and output, once forward and twice backward (for the gradients of input and weights). A
    batch norm with its ReLU: three times its map forward (statistics, then read and write), five times backward.
    """
    elements = 0

    def count(module, inputs, output):
        nonlocal elements
        if isinstance(module, torch.nn.Conv2d):
            elements += 3 * (inputs[0].numel() + output.numel())
        elif isinstance(module, torch.nn.BatchNorm2d):
            elements += 8 * output.numel()

    network = ResNet18(10).eval()
    for module in network.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size))
    return elements * (2 if precision == "bf16" else 4)


def environment(device: torch.device) -> dict[str, str | int | float | None]:
    """The card with its driver and memory, or the CPU, and the versions of the libraries."""
    found = {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def driver_version() -> str | None:
    """The version of the GPUs' driver according to nvidia-smi; None if that is not installed."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else None


def parse_args(argv=None):
    """The flags of the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--precisions", nargs="+", choices=("auto", *DTYPES), default=["auto"], help="precisions of the products")
    add("--rates", action=BooleanOptionalAction, default=True, help="measure; otherwise only describe the machine")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--json", metavar="FILE", help="also write the figures there")
    return parser.parse_args(argv)


def main(argv=None):
    """The script."""
    args = parse_args(argv)
    with one_line_errors():
        device = pick_device(args.device)
        report = environment(device)
        if args.rates:
            precisions = dict.fromkeys(pick_precision(name, device) for name in args.precisions)
            rates = {precision: matrix_product_rate(device, DTYPES[precision]) for precision in precisions}
            report |= {"matrix_products": rates, "copies": copy_rate(device)}
        print(json.dumps(report, indent=1))
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
