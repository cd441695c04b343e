"""Step, evaluation and learning rate against torch put together by hand; faster forms of the step against itself."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from narrow import NarrowResNet18
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import train
from dataset.batches import Augmentation, Batches
from dataset.placement import HostImages
from dataset.preprocess import Preprocess
from network import ResNet18
from training import evaluation
from training.acceleration import accelerate, warm_up
from training.distributed import ALONE
from training.optimizer import SCHEDULES, Optimization, Plan, learning_rate, load_optimizer_state, sgd
from training.step import EMA, TrainStep


def make(device="cpu", dtype=torch.float32, image_size=32, average=0.0, norm_decay=False, nesterov=False, smoothing=0.0,
         precision="fp32", cutmix=0.0, network=NarrowResNet18, on_host=False):  # fmt: skip
    """A training step on noise, and the rows of its first epoch."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(images), device=device) % 4
    preprocess = Preprocess(image_size, [0.5] * 3, [0.25] * 3, device)
    if dtype == torch.float64:
        preprocess.mean_255, preprocess.std_255 = preprocess.mean_255.double(), preprocess.std_255.double()
    images = HostImages(images) if on_host else images.to(device)
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
    theirs = swa_utils.AveragedModel(step.network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8))
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
    (step, rows), (other, _) = make(), make()
    step(rows[0])
    state, group = step.optimizer.state_dict(), other.optimizer.param_groups[0]
    rate, state["param_groups"] = group["lr"], [group | {"fused": False, "lr": 0.5} for group in state["param_groups"]]
    load_optimizer_state(other.optimizer, state)
    group = other.optimizer.param_groups[-1]
    assert group["lr"] is rate and group["fused"]
    for a, b in zip(step.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def losses(step, call, rows):
    """Of an epoch with a learning rate that changes."""
    sums = []
    for position, batch in enumerate(step.batches.iterate(rows)):
        step.optimizer.param_groups[0]["lr"].fill_(0.05 / (position + 1))
        sums.append(call(*batch).clone())
    return torch.stack(sums)


def assert_same_state(first, second, **tolerance):
    for a, b in zip(first.state(), second.state(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_a_warm_up_leaves_no_trace():
    """What a capture and a compilation begin with: after it, training is the same bit for bit."""
    (plain, rows), (warmed_up, _) = make(average=0.9), make(average=0.9)
    warm_up(warmed_up, (rows[0], None), 3)
    assert torch.equal(losses(plain, plain, rows[:2]), losses(warmed_up, warmed_up, rows[:2]))
    assert_same_state(plain, warmed_up, rtol=0, atol=0)


def small_network(classes):
    """Traced in a second."""
    layers = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, classes))


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_losses(monkeypatch):
    """In float64, for training makes much of small differences. Traced and differentiated, but no code is generated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
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
    """And with images on the host the same as with images on the device."""
    settings = {"precision": precision, "cutmix": 0.5, "network": ResNet18}
    (plain, rows), (faster, _), said = *(make("cuda", dtype, 64, 0.9, on_host=host, **settings) for host in (0, 1)), []
    (batch,) = faster.batches.iterate(rows[:1])
    call = accelerate(faster, batch, use_compile, None, say=said.append)
    assert call is not faster
    assert all("in" in text and not text.startswith("not") for text in said), said
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(losses(plain, plain, rows)[:, 0], losses(faster, call, rows)[:, 0], **tolerance)


def test_only_a_single_process_on_a_gpu_captures_its_step_and_what_fails_is_said(monkeypatch):
    (step, rows), two = make(), SimpleNamespace(size=2, wrap_ddp=lambda network: network)
    gpu, cpu = ((SimpleNamespace(device=torch.device(name)), None) for name in ("cuda", "cpu"))

    def fails(*_):
        raise OSError("none here")

    monkeypatch.setattr("training.acceleration.capture", lambda step, batch: "the captured step")
    calls = [accelerate(step, gpu, False, asked) for asked in (None, True, False)]
    assert calls == ["the captured step", "the captured step", step]
    for batch, world, missing in ((gpu, two, "a single process"), (cpu, ALONE, "a CUDA GPU")):
        for asked in (None, True):
            said = []
            assert accelerate(step, batch, False, asked, world, said.append) is step
            assert said == [f"not captured: this needs {missing}"] * bool(asked)
    monkeypatch.setattr("training.acceleration.capture", fails)
    assert accelerate(step, gpu, False, None, say=said.append) is step
    assert said[-1] == "not captured, continuing without: OSError, none here"
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    step.network.forward = fails
    with pytest.raises(OSError, match="not compiled .none here.: leave out --compile"):
        accelerate(step, (rows[0], None), use_compile=True, use_cuda_graph=None)


@pytest.mark.parametrize("flip", [False, True])
def test_an_evaluation_counts_every_image_once(monkeypatch, flip):
    """Of images that make two full batches and a small part of a third; flip: averaged with mirror images."""
    monkeypatch.setattr(evaluation, "PIXELS_PER_BATCH", 100 * 16 * 16)
    images, network = torch.randint(0, 256, (2 * 100 + 3, 3, 16, 16), dtype=torch.uint8), NarrowResNet18(10)
    labels, preprocess = torch.arange(len(images)) % 10, Preprocess(16, [0.5] * 3, [0.25] * 3)
    loss, accuracy = evaluation.evaluate(network, images, labels, preprocess, flip=flip)
    assert network.training  # put back
    network.eval()
    with torch.inference_mode():
        logits = network(preprocess(images))
        if flip:
            logits = (logits + network(preprocess(images.flip(3)))) / 2
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)


def ours(steps, steps_per_epoch, flags):
    args = train.parse_args(["--lr", "0.2", *flags.split()])
    settings = train.make_settings(args, torch.device("cpu")).optimization
    return [learning_rate(step, Plan((), steps_per_epoch, steps), settings) for step in range(steps)]


def linear_after_warm_up(optimizer, _):
    up, down = (lr_scheduler.LinearLR(optimizer, *ends) for ends in ((1 / 10, 1, 9), (1, 0, 30)))
    return lr_scheduler.SequentialLR(optimizer, [up, down], [10])


@pytest.mark.parametrize("flags, scheduler, steps, period", [
    ("", lambda optimizer, _: lr_scheduler.StepLR(optimizer, 20, 0.1), 50 * 4, 4),
    ("--schedule exponential", lambda optimizer, _: lr_scheduler.ExponentialLR(optimizer, 0.35 ** (1 / 30)), 124, 4),
    ("--schedule cosine", lr_scheduler.CosineAnnealingLR, 120, 1),
    ("--schedule linear --lr-warmup-epochs 2.5", linear_after_warm_up, 40, 1),
    *(("--schedule onecycle", partial(lr_scheduler.OneCycleLR, max_lr=0.2, cycle_momentum=False), steps, 1)
      for steps in (120, 97, 7)),
])  # fmt: skip
def test_it_is_torchs(flags, scheduler, steps, period):
    """period: iterations from one step of the scheduler to the next."""
    optimizer, rates = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2), []
    theirs = scheduler(optimizer, total_steps=steps) if "onecycle" in flags else scheduler(optimizer, steps)
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % period == 0 and step + 1 < steps:
            theirs.step()
    assert ours(steps, 4, flags) == pytest.approx(rates, rel=1e-9, abs=1e-12)


def test_the_warm_up_rises_and_the_shortest_runs_have_a_learning_rate():
    plain, warm = ours(40, 4, ""), ours(40, 4, "--lr-warmup-epochs 2.5")
    assert warm[:10] == pytest.approx([0.02 * step for step in range(1, 11)]) and warm[10:] == plain[10:]
    for schedule in SCHEDULES:
        for steps in (1, 2, 3):
            assert all(0 < rate <= 0.2 for rate in ours(steps, 1, f"--schedule {schedule}"))
