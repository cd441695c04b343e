"""The length of a run, SGD, and its learning rate: functions of the iteration, so resuming needs no scheduler state."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SCHEDULES = ("step", "exponential", "linear", "cosine", "onecycle")
DEFAULT_GAMMA = {"step": 0.1, "exponential": 0.35 ** (1 / 30)}  # of the schedules that do not depend on the length


@dataclass(frozen=True)
class Optimization:
    """Settings of the loss, SGD and its learning rate, by the names of train.py's flags."""

    lr: float = 0.025  # at its peak
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    norm_decay: bool = False  # weight decay on biases and batch norms, too
    schedule: str = "step"  # one of SCHEDULES
    lr_step_size: int = 20  # epochs, of "step"
    lr_gamma: float | None = 0.1  # of "step" and "exponential"
    lr_warmup_epochs: float = 0.0
    label_smoothing: float = 0.0  # of the cross-entropy, 0 to 1
    ema_decay: float = 0.0  # of the exponential moving average of the weights; 0 disables it


@dataclass(frozen=True)
class Plan:
    """The length of a run."""

    image_sizes: tuple[int, ...]  # of each epoch, in pixels
    steps_per_epoch: int  # iterations
    total_steps: int  # iterations of the run, at most those of all epochs


def sgd(network: nn.Module, settings: Optimization) -> torch.optim.SGD:
    """SGD whose learning rate is a tensor on the device and whose momentum buffers exist from the start.

    Capturing a step as a CUDA graph needs both. On MPS, which would read the tensor on the host, it is a float.
    """
    parameters = list(network.parameters())
    groups = [{"params": parameters}]
    if not settings.norm_decay:
        groups = [{"params": [value for value in parameters if value.ndim > 1]},
                  {"params": [value for value in parameters if value.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    fused = parameters[0].device.type != "mps"
    optimizer = torch.optim.SGD(groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay,
                                nesterov=settings.nesterov, fused=fused)  # fmt: skip
    rate = torch.full((), settings.lr, device=parameters[0].device) if fused else settings.lr
    for group in optimizer.param_groups:
        group["lr"] = rate
    for value in parameters:
        optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
    return optimizer


def set_learning_rate(optimizer: torch.optim.SGD, learning_rate: float) -> None:
    """Sets the learning rate of all groups, in place where it is a tensor, which all groups share."""
    for group in optimizer.param_groups:
        is_tensor = isinstance(group["lr"], torch.Tensor)
        group["lr"] = group["lr"].fill_(learning_rate) if is_tensor else learning_rate


def load_optimizer_state(optimizer: torch.optim.SGD, state: dict[str, Any]) -> None:
    """Restores the momentum; the learning rate and `fused` remain those of this device."""
    kept = {name: optimizer.param_groups[0][name] for name in ("lr", "fused")}
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group.update(kept)


def learning_rate(step: int, plan: Plan, settings: Optimization) -> float:
    """The learning rate of iteration `step`, counted from 0.

    The curves are those of torch.optim.lr_scheduler: StepLR and ExponentialLR by epoch; CosineAnnealingLR and
    OneCycleLR (arXiv:1708.07120) by iteration. "linear" falls to 0 from the end of the warm-up on. During the warm-up
    every curve is multiplied by a factor that rises from 0 to 1.
    """
    peak, epoch, total_steps = settings.lr, step // plan.steps_per_epoch, plan.total_steps
    warmup = settings.lr_warmup_epochs * plan.steps_per_epoch
    factor = (step + 1) / warmup if step < warmup else 1.0
    if settings.schedule == "step":
        return factor * peak * settings.lr_gamma ** (epoch // settings.lr_step_size)
    if settings.schedule == "exponential":
        return factor * peak * settings.lr_gamma**epoch
    if settings.schedule == "linear":
        return factor * peak * (1 if step < warmup else (total_steps - step) / (total_steps - warmup))
    if settings.schedule == "cosine":
        return factor * _cosine(peak, 0, step / total_steps)
    rise, last = 0.3 * total_steps - 1, total_steps - 1  # of "onecycle"
    if step <= rise:
        return factor * _cosine(peak / 25, peak, step / rise)
    return factor * _cosine(peak, peak / 25e4, (step - rise) / (last - rise))


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
