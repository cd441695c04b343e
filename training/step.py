"""One training iteration, and the moving average of the weights."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batches import Batches


class EMA:
    """Exponential moving average of a network's parameters, as a network with batch-norm statistics of its own.

    Not torch.optim.swa_utils.AveragedModel, whose update reads a counter on the host: a CUDA graph cannot.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(network).eval(), decay
        self.averages, self.values = list(self.network.parameters()), list(network.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """average <- decay * average + (1 - decay) * value."""
        torch._foreach_lerp_(self.averages, self.values, 1 - self.decay)

    def update_batch_norm(self, inputs: Iterable[Tensor], precision: str) -> None:
        """Replaces the batch-norm statistics by those of these batches of network inputs (N, 3, S, S)."""
        device = self.averages[0].device
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False):
            torch.optim.swa_utils.update_bn(inputs, self.network)


class TrainStep:
    """One iteration: batch, loss, gradient, update. Shapes are static and the host waits for nothing.

    network    what is called; may be wrapped or compiled, but its parameters are the optimizer's
    batches    maps rows to inputs and labels
    precision  "fp32", or "bf16": autocast, with weights and optimizer in float32
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str,
                 label_smoothing: float = 0.0, ema: EMA | None = None):  # fmt: skip
        self.network, self.optimizer, self.batches, self.ema = network, optimizer, batches, ema
        self.precision, self.label_smoothing = precision, label_smoothing

    def __call__(self, rows: Tensor, images: Tensor | None = None) -> Tensor:
        """Trains on what `Batches.iterate` yields: rows (B, columns), and their images; returns their `metric_sums`."""
        loss, logits, labels = self.forward(rows, images)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        return metric_sums(loss, logits, labels)

    def forward(self, rows: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss (), logits (B, classes), and the labels (B,) that the accuracy counts.

        With CutMix, the loss is that of both labels by their shares; the accuracy counts that of the larger share.
        """
        inputs, labels, *mixed = self.batches(rows, images)
        # each weight is cast once per iteration, so a cache of casts would only hold memory
        with torch.autocast(inputs.device.type, torch.bfloat16, self.precision == "bf16", cache_enabled=False):
            logits = self.network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        if mixed:
            partner_labels, share = mixed
            other = F.cross_entropy(logits.float(), partner_labels, label_smoothing=self.label_smoothing)
            loss = share * loss + (1 - share) * other
            labels = torch.where(share >= 0.5, labels, partner_labels)
        return loss, logits, labels

    def state(self) -> list[Tensor]:
        """Every tensor that an iteration changes."""
        momentum = [value["momentum_buffer"] for value in self.optimizer.state.values()]
        average = self.ema.network.state_dict().values() if self.ema else []
        return [*self.network.state_dict().values(), *momentum, *average]


def metric_sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of losses, number of correct predictions, and number of images of a batch: (3,), on the device.

    loss: the batch's mean, (); logits: (B, classes); labels: (B,) int64.
    """
    count = torch.full_like(loss, len(labels))
    return torch.stack([loss * count, (logits.argmax(1) == labels).sum().to(loss.dtype), count]).detach()
