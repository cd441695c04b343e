"""The training step and the evaluation against torch put together by hand; faster forms of the step against itself."""

import copy
import functools
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from narrow import NarrowResNet18
from torch import nn

from dataset.batches import Augmentation, Batches
from dataset.preprocess import Preprocess
from network import ResNet18
from training import evaluation
from training.acceleration import accelerate, warm_up
from training.distributed import ALONE
from training.optimizer import Optimization, load_optimizer_state, sgd
from training.step import EMA, TrainStep

ITERATIONS = 6


def make(device="cpu", dtype=torch.float32, image_size=32, average=0.0, norm_decay=False, nesterov=False, smoothing=0.0,
         precision="fp32", cutmix=0.0, network=NarrowResNet18):  # fmt: skip
    """A training step on noise, and the rows of its first epoch."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8 * ITERATIONS, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.arange(len(images), device=device) % 4
    preprocess = Preprocess(image_size, [0.5] * 3, [0.25] * 3, device)
    if dtype == torch.float64:
        preprocess.mean_255, preprocess.std_255 = preprocess.mean_255.double(), preprocess.std_255.double()
    batches = Batches(images, labels, preprocess, 8, 0, Augmentation(cutmix=cutmix))
    network = network(4).to(device, dtype, memory_format=torch.channels_last)
    ema = EMA(network, average) if average else None
    optimizer = sgd(network, Optimization(0.05, nesterov=nesterov, weight_decay=1e-3, norm_decay=norm_decay))
    return TrainStep(network, optimizer, batches, precision, smoothing, ema), batches.rows(0)


@pytest.mark.parametrize("norm_decay, nesterov, cutmix", [(True, False, 0.0), (False, True, 1.0)])
def test_two_steps_are_sgd_on_the_cross_entropy(norm_decay, nesterov, cutmix):
    """In float64; the second has momentum, and another learning rate."""
    step, rows = make(dtype=torch.float64, norm_decay=norm_decay, nesterov=nesterov, smoothing=0.1, cutmix=cutmix)
    twin = copy.deepcopy(step.network)
    velocity = [torch.zeros_like(value) for value in twin.parameters()]
    for rate, batch in ((0.05, rows[0]), (0.01, rows[1])):
        step.optimizer.param_groups[0]["lr"].fill_(rate)
        sums = step(batch)

        inputs, labels, *mixed = step.batches(batch)
        logits = twin(inputs)
        targets = torch.full((8, 4), 0.1 / 4, dtype=torch.float64)
        partner_labels, share = mixed or (labels, torch.ones(()))
        targets[torch.arange(8), labels] += 0.9 * share
        targets[torch.arange(8), partner_labels] += 0.9 * (1 - share)
        labels = labels if share >= 0.5 else partner_labels
        loss = -(targets * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        # cross-entropy is taken in float32, as under autocast
        assert sums[0].item() / 8 == pytest.approx(loss.item(), rel=1e-5) and sums[2] == 8
        assert sums[1] == (logits.argmax(1) == labels).sum()
        with torch.no_grad():
            for n, (value, gradient) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                decay = 1e-3 if norm_decay or value.ndim > 1 else 0.0
                gradient = gradient + decay * value
                velocity[n] = 0.9 * velocity[n] + gradient
                value -= rate * (gradient + 0.9 * velocity[n] if nesterov else velocity[n])
    for (name, after), expected in zip(step.network.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(after, expected, atol=1e-6), name


def test_the_moving_average_is_torchs_with_batch_norm_statistics_of_its_own():
    """Of the weights by torch.optim.swa_utils; conv1's statistics are what its own weights make of the inputs."""
    step, rows = make(average=0.8)
    theirs = torch.optim.swa_utils.AveragedModel(
        step.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )
    theirs.update_parameters(step.network)  # the first call copies
    for batch in rows:
        step(batch)
        theirs.update_parameters(step.network)
    network = step.ema.network
    for (name, value), expected in zip(network.named_parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.allclose(network.fc.weight, step.network.fc.weight, atol=1e-4)
    inputs = step.batches(rows[0])[0]
    step.ema.update_batch_norm([inputs], "fp32")
    maps = torch.nn.functional.conv2d(inputs, network.conv1.weight, None, 2, 3)
    assert torch.allclose(network.bn1.running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network.bn1.running_var, maps.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    assert not network.training and network.bn1.momentum == step.network.bn1.momentum


def test_the_optimizer_of_another_device_keeps_its_own_learning_rate_and_kernels():
    """A checkpoint's `fused` belongs to the device it was written on; only the momentum is taken over."""
    step, rows = make()
    step(rows[0])
    state = step.optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"], group["lr"] = False, 0.5
    other, _ = make()
    rate = other.optimizer.param_groups[0]["lr"]
    load_optimizer_state(other.optimizer, state)
    assert other.optimizer.param_groups[0]["lr"] is rate and other.optimizer.param_groups[0]["fused"]
    for a, b in zip(step.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def losses(step, call, rows):
    """Of an epoch with a learning rate that changes."""
    sums = []
    for position, batch in enumerate(rows):
        step.optimizer.param_groups[0]["lr"].fill_(0.05 / (position + 1))
        sums.append(call(batch).clone())
    return torch.stack(sums)


def assert_same_state(first, second, **tolerance):
    for a, b in zip(first.state(), second.state(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_a_warm_up_leaves_no_trace():
    """What a capture and a compilation begin with: after it, training is the same bit for bit."""
    (plain, rows), (warmed_up, _) = make(average=0.9), make(average=0.9)
    warm_up(warmed_up, (rows[0], None))
    assert_same_state(plain, warmed_up, rtol=0, atol=0)
    assert torch.equal(losses(plain, plain, rows[:2]), losses(warmed_up, warmed_up, rows[:2]))
    assert_same_state(plain, warmed_up, rtol=0, atol=0)


def small_network(classes):
    """Traced in a second."""
    layers = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, classes))


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_losses(monkeypatch):
    """In float64, for training makes much of small differences. Traced and differentiated, but no code is generated."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    (plain, rows), (faster, _) = (make(average=0.9, dtype=torch.float64, network=small_network) for _ in range(2))
    said = []
    call = accelerate(faster, (rows[0], None), use_compile=True, use_cuda_graph=False, say=said.append)
    assert "compiled in" in said[0] and isinstance(faster.network, torch._dynamo.OptimizedModule)
    torch.testing.assert_close(losses(plain, plain, rows), losses(faster, call, rows), rtol=1e-5, atol=1e-5)
    assert_same_state(plain, faster, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("use_compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype, precision", [(torch.float64, "fp32"), (torch.float32, "bf16")], ids=str)
def test_a_captured_step_gives_the_same_losses(use_compile, dtype, precision):
    (plain, rows), (faster, _) = (
        make("cuda", dtype, 64, 0.9, precision=precision, cutmix=0.5, network=ResNet18) for _ in range(2)
    )
    said = []
    call = accelerate(faster, (rows[0], None), use_compile, None, say=said.append)
    assert call is not faster
    assert all("in" in text and not text.startswith("not") for text in said), said
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(losses(plain, plain, rows)[:, 0], losses(faster, call, rows)[:, 0], **tolerance)


class TestWhatIsNotPossible:
    @pytest.mark.parametrize("asked", [None, True, False])
    def test_only_on_a_gpu_a_single_process_captures_its_step_unless_that_is_turned_off(self, monkeypatch, asked):
        monkeypatch.setattr("training.acceleration.capture", lambda step, batch: "the captured step")
        step, gpu = make()[0], (SimpleNamespace(device=torch.device("cuda")), None)
        two = SimpleNamespace(size=2, wrap_ddp=lambda network: network)
        for batch, world, missing in ((gpu, ALONE, None), (gpu, two, "a single process"),
                                      ((torch.zeros(1), None), ALONE, "a CUDA GPU")):  # fmt: skip
            said = []
            call = accelerate(step, batch, False, asked, world, said.append)
            captures = asked is not False and missing is None
            assert call == "the captured step" if captures else call is step
            assert missing is None or said == [f"not captured: this needs {missing}"] * bool(asked)

    def test_without_a_compiler_the_run_goes_on_but_of_several_processes_none_alone(self, monkeypatch):
        step, rows = make()
        network, before, said = step.network, [value.clone() for value in step.state()], []

        def missing(inputs):  # when the network is first called
            raise OSError("no compiler here")

        monkeypatch.setattr(torch, "compile", lambda network, **_: missing_forward(network, missing))
        assert accelerate(step, (rows[0], None), use_compile=True, use_cuda_graph=None, say=said.append) is step
        assert said == ["not compiled, continuing without: OSError, no compiler here"]
        assert step.network is network
        assert all(torch.equal(a, b) for a, b in zip(before, step.state(), strict=True))
        two = SimpleNamespace(size=2, wrap_ddp=lambda network: network)
        with pytest.raises(OSError, match="not compiled .no compiler here.: leave out --compile"):
            accelerate(step, (rows[0], None), True, None, two, said.append)

    def test_on_an_old_torch_a_failed_capture_ends_the_run(self, monkeypatch):
        """Its allocator stays in a capturing state; continuing would fail later, without a reason."""
        step, gpu, said = make()[0], (SimpleNamespace(device=torch.device("cuda")), None), []
        monkeypatch.setattr("training.acceleration.capture", Mock(side_effect=RuntimeError("no graph")))
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.0"))
        assert accelerate(step, gpu, False, None, say=said.append) is step and "no graph" in said[0]
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.8.0"))
        with pytest.raises(OSError, match="pass --no-cuda-graph"):
            accelerate(step, gpu, False, None)


def missing_forward(network, forward):
    network = copy.copy(network)
    network.forward = forward
    return network


@pytest.mark.parametrize("flip", [False, True])
def test_an_evaluation_counts_every_image_once(monkeypatch, flip):
    """Of images that make two full batches and a small part of a third; flip: averaged with mirror images."""
    monkeypatch.setattr(evaluation, "PIXELS_PER_BATCH", 100 * 16 * 16)
    images, sizes = torch.randint(0, 256, (2 * 100 + 3, 3, 16, 16), dtype=torch.uint8), []
    network, labels, preprocess = (
        NarrowResNet18(10),
        torch.arange(len(images)) % 10,
        Preprocess(16, [0.5] * 3, [0.25] * 3),
    )
    hook = network.conv1.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    loss, accuracy = evaluation.evaluate(network, images, labels, preprocess, flip=flip)
    hook.remove()
    assert network.training  # put back
    assert sizes == [100] * (6 if flip else 3)  # of static shape
    network.eval()
    with torch.inference_mode():
        logits = network(preprocess(images))
        if flip:
            logits = (logits + network(preprocess(images.flip(3)))) / 2
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert evaluation.mean_metrics(torch.zeros(3)) == (0.0, 0.0)
