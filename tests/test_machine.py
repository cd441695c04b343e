import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from runtime.device import (
    bf16_if_native,
    has_native_bf16,
    keep_freed_memory,
    pick_device,
    pick_precision,
    release_freed_memory,
)

CPU = torch.device("cpu")


def test_the_device():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(OSError, match=f"device '{name}' does not work .*: pass --device cpu .found: cpu"):
            pick_device(name)


@pytest.mark.parametrize("bf16, amx, expected", [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")])
def test_precision_on_a_cpu(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert [pick_precision(name, CPU) for name in ("auto", "fp32", "bf16")] == [expected, "fp32", "bf16"]


def test_precision_where_torch_no_longer_tells(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert pick_precision("auto", CPU) == "fp32" and not has_native_bf16(CPU)


@pytest.mark.parametrize("image_size, expected", [(16, "fp32"), (17, "bf16")])
def test_bf16_on_a_cpu_needs_maps_of_more_than_one_pixel(capsys, image_size, expected):
    assert pick_precision("bf16", CPU, image_size) == expected
    assert capsys.readouterr().out.count("\n") == (expected == "fp32")
    assert pick_precision("bf16", torch.device("cuda"), image_size) == "bf16"


@pytest.mark.parametrize("capability, expected", [((9, 0), "bf16"), ((7, 5), "fp32")])
def test_precision_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda")) == expected


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="reads x86 flags from /proc")
def test_native_bf16_by_the_flags_of_the_cpu():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_native_bf16(CPU) == bool({"avx512_bf16", "amx_tile"} & flags)
    with bf16_if_native(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == has_native_bf16(CPU)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept_until_it_is_released():
    """A large block comes back without the system clearing its pages again."""
    resource = pytest.importorskip("resource")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * 2**20)  # 64 MiB: 16,384 pages of 4 KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    keep_freed_memory()
    assert min(faults() for _ in range(30)) < 1000
    tensors = [torch.ones(2**18) for _ in range(200)]  # of 1 MiB each
    del tensors[:-1]  # the last one keeps the heap from shrinking at its end
    kept = resident()
    release_freed_memory()
    assert kept - resident() > 150 * 2**20
