"""The device code on a CUDA device that does not exist; fake tensors refuse mixed devices and synchronisation.

Limits: autograd's backward pass needs the real device, so the optimizer gets gradients that are made up.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.batches import Augmentation, Batches
from dataset.preprocess import Preprocess
from network import STAGES, ResNet18
from reverse_network import RULES, ReverseResNet18, class_signal, isolate
from training.evaluation import evaluate
from training.optimizer import Optimization, sgd
from training.step import EMA, TrainStep, metric_sums

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 9), reason="fake tensors of older versions copy constants to the real device"
)
GPU = torch.device("cuda:0")


@pytest.fixture
def fake(monkeypatch):
    """Every tensor is fake, and may claim to be on a GPU; `.item()`, `.cpu()` and the like are errors."""
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


def rows(batch=8, columns=16):
    """A batch of rows, which are made on the host."""
    return torch.zeros(batch, columns, dtype=torch.int64, device=GPU)


@pytest.mark.parametrize("augmentation, columns", [({}, 6), ({"cutout": 8}, 6), ({"scale_crop": 0.5}, 10)], ids=str)
@pytest.mark.parametrize("images_on", ["device", "host"])
def test_batches(fake, augmentation, columns, images_on):
    made, stored = batches(**augmentation), None
    if images_on == "host":  # which has sent those of the batch
        stored, made.images = made.images[:8], None
    inputs, labels = made(rows(columns=columns), stored)
    assert inputs.device == labels.device == GPU and inputs.shape == (8, 3, 64, 64)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cutmix", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forward_pass_and_metrics(fake, precision, cutmix):
    step = TrainStep(network(), None, batches(cutmix=cutmix), precision, 0.1)
    loss, logits, labels = step.forward(rows(columns=16 if cutmix else 6))
    assert metric_sums(loss, logits, labels).device == GPU
    assert logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("settings", [Optimization(), Optimization(nesterov=True, norm_decay=True)], ids=str)
def test_optimizer_and_moving_average(fake, settings):
    model = network()
    optimizer, ema = sgd(model, settings), EMA(model, 0.99)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(0.01)
    ema.update()
    assert all(value.device == GPU for value in ema.network.state_dict().values())
    optimizer.zero_grad()
    assert all(value["momentum_buffer"].device == GPU for value in optimizer.state.values())


def test_evaluation_waits_once_at_its_end(fake, monkeypatch):
    monkeypatch.setattr("training.evaluation.mean_metrics", lambda sums: sums)
    made = batches()
    sums = evaluate(network(), made.images, made.labels, made.preprocess, "bf16", flip=True)
    assert sums.device == GPU and sums.shape == (3,)


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
                signals += [
                    class_signal(model, trace.features[stage], classes, weighted=True) for classes in (3, index)
                ]
            for signal in signals:
                picture = ReverseResNet18(model, rule, unpool)(signal, stage, trace)
                assert picture.device == GPU and picture.shape == inputs.shape


@pytest.mark.parametrize(
    "mistake", [lambda logits: logits.sum().item(), lambda logits: logits.cpu(), int], ids=["item", "cpu", "int"]
)
def test_a_planted_synchronisation_is_noticed(fake, mistake):
    logits = network()(batches()(rows(columns=6))[0])
    with pytest.raises(Exception, match="(?i)data-dependent|copies to the host|_local_scalar_dense|cannot|convert"):
        mistake(logits)


def test_a_tensor_left_on_the_host_is_noticed(fake):
    with pytest.raises(RuntimeError, match="device"):
        network()(torch.zeros(2, 3, 64, 64))
