"""The device and its precision; device code on a CUDA device that does not exist.

Fake tensors refuse mixed devices and synchronisation. Autograd's backward pass needs a real device, so the optimizer
gets gradients that are made up.
"""

import platform
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.batches import Augmentation, Batches
from dataset.preprocess import Preprocess
from network import STAGES, ResNet18
from reverse_network import RULES, ReverseResNet18, class_signal, isolate
from runtime import device as machine
from training.evaluation import evaluate
from training.optimizer import Optimization, sgd
from training.step import EMA, TrainStep, metric_sums

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def fake(monkeypatch):
    """Every tensor is fake, and may claim to be on a GPU; `.item()`, `.cpu()` and the like are errors."""
    if torch.__version__ < (2, 9):
        pytest.skip("fake tensors of older versions copy constants to the real device")
    monkeypatch.setattr("training.step.copy.deepcopy", lambda model: network())  # a copy has another fake mode
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    with FakeTensorMode(), NoCopyToHost():
        yield


class NoCopyToHost(TorchDispatchMode):
    """Refuses copies from the device to the host, which wait for it; fake tensors refuse `.item()` themselves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._fused_sgd_:  # has no fake kernel
            assert {value.device for values in args[:3] for value in values} == {kwargs["lr"].device} == {GPU}
            return None
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            assert not any(value.device.type == "cuda" for value in tensors), f"{func} copies to the host"
        return result


def network():
    with torch.device(GPU):
        return ResNet18(10)


def batches(**augmentation):
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device=GPU)
    labels = torch.zeros(64, dtype=torch.int64, device=GPU)
    return Batches(images, labels, Preprocess(64, [0.5] * 3, [0.25] * 3, GPU), 8, 0, Augmentation(**augmentation))


@pytest.mark.parametrize("augmentation, columns", [
    ({}, 6), ({"cutout": 8}, 6), ({"scale_crop": 0.5}, 10), ({"cutmix": 0.5}, 16)], ids=str)  # fmt: skip
@pytest.mark.parametrize("images_on, precision", [("device", "fp32"), ("host", "bf16")])
def test_batches_forward_pass_and_metrics(fake, augmentation, columns, images_on, precision):
    made, stored, rows = batches(**augmentation), None, torch.zeros(8, columns, dtype=torch.int64, device=GPU)
    if images_on == "host":  # which has sent those of the batch, and of the partners
        stored, made.images = made.images[:16] if columns == 16 else made.images[:8], None
    loss, logits, labels = TrainStep(network(), None, made, precision, 0.1).forward(rows, stored)
    assert metric_sums(loss, logits, labels).device == GPU
    assert logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("settings", [Optimization(), Optimization(nesterov=True, norm_decay=True)], ids=str)
def test_optimizer_and_moving_average(fake, settings):
    model = network()
    optimizer, ema = sgd(model, settings), EMA(model, 0.99)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    ema.update()
    assert all(value.device == GPU for value in ema.network.state_dict().values())
    assert all(value["momentum_buffer"].device == GPU for value in optimizer.state.values())


def test_evaluation_waits_once_at_its_end_and_mistakes_are_noticed(fake, monkeypatch):
    made = batches()
    run = partial(evaluate, network(), made.images, made.labels, made.preprocess, "bf16", flip=True)
    for mistake in (run, made.labels.cpu, lambda: made.labels + torch.zeros(64)):  # waits, copies, mixes devices
        with pytest.raises(Exception, match="(?i)data-dependent|copies to the host|_local_scalar_dense|device"):
            mistake()
    monkeypatch.setattr("training.evaluation.mean_metrics", lambda sums: sums)
    assert run().device == GPU


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unpool", ["sum", "overwrite"])
def test_trace_isolate_class_signal_and_mirror(fake, rule, unpool):
    model, index = network().eval(), torch.zeros(3, dtype=torch.int64, device=GPU)
    inputs = torch.zeros(3, 3, 64, 48, device=GPU)
    with torch.inference_mode():
        trace = model.trace(inputs)
        for stage in STAGES:
            signals = [isolate(trace.features[stage], 2, units) for units in ("map", "peak", index)]
            if stage == "conv5_x":
                signals.append(class_signal(model, trace.features[stage], index, weighted=True))
            for signal in signals:
                picture = ReverseResNet18(model, rule, unpool)(signal, stage, trace)
                assert picture.device == GPU and picture.shape == inputs.shape


def test_the_device():
    assert machine.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(OSError, match=f"device '{name}' does not work .*: pass --device cpu .found: cpu"):
            machine.pick_device(name)


@pytest.mark.parametrize("bf16, amx, expected", [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")])
def test_the_precision(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert [machine.pick_precision(name, CPU) for name in ("auto", "fp32", "bf16")] == [expected, "fp32", "bf16"]
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # a torch that no longer tells
        monkeypatch.delattr(torch.cpu, name)
    assert machine.pick_precision("auto", CPU) == "fp32"
    for capability, precision in (((9, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert machine.pick_precision("auto", GPU) == precision
    for device, size, precision in ((CPU, 17, "bf16"), (GPU, 16, "bf16"), (CPU, 16, "fp32")):
        assert machine.pick_precision("bf16", device, size) == precision  # on a CPU, bf16 needs maps of two pixels


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="reads x86 flags from /proc")
def test_native_bf16_by_the_flags_of_the_cpu():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert machine.has_native_bf16(CPU) == bool({"avx512_bf16", "amx_tile"} & flags)
    with machine.bf16_if_native(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == machine.has_native_bf16(CPU)
