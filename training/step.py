"""One training iteration, and two ways to make it faster: compiled, and captured as one CUDA graph."""

import copy
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batches import Batches
from runtime.checkpoint import first_line
from training.distributed import ALONE, Processes

REHEARSALS = 3  # iterations before a capture, in which libraries choose their algorithms and allocate memory


def sgd(network: nn.Module, learning_rate: float, momentum: float, weight_decay: float, norm_decay: bool = True,
        nesterov: bool = False) -> torch.optim.SGD:  # fmt: skip
    """SGD whose learning rate is a tensor on the device and whose momentum buffers exist from the start.

    Both are needed to capture a step as a CUDA graph. norm_decay: apply the weight decay to biases and batch norms too.
    """
    parameters = list(network.parameters())
    decayed = [value for value in parameters if value.ndim > 1 or norm_decay]
    others = [value for value in parameters if value.ndim == 1 and not norm_decay]
    groups = [{"params": decayed}] + ([{"params": others, "weight_decay": 0.0}] if others else [])
    device = parameters[0].device
    optimizer = torch.optim.SGD(
        groups,
        torch.tensor(learning_rate, device=device),
        momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=device.type != "mps",
    )
    for value in parameters:
        optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
    return optimizer


class EMA:
    """Exponential moving average of a network's parameters, as a network with batch-norm statistics of its own.

    torch.optim.swa_utils.AveragedModel reads its counter on the host in every update; a CUDA graph cannot do that.
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
    """One iteration: a batch, the loss, its gradient, the new weights. Of static shape, and the host waits for nothing.

    network    what is called; may be wrapped or compiled, but its parameters are the optimizer's
    batches    makes inputs and labels of the rows of a plan
    precision  "fp32", or "bf16": autocast, with weights and optimizer in float32
    ema        moving average of the weights, updated after every step
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str,
                 label_smoothing: float = 0.0, ema: EMA | None = None):  # fmt: skip
        self.network, self.optimizer, self.batches, self.ema = network, optimizer, batches, ema
        self.precision, self.label_smoothing = precision, label_smoothing

    def __call__(self, plan: Tensor) -> Tensor:
        """Trains on the rows (B, 6) of `Batches.plan`; returns their `sums_of`."""
        inputs, labels = self.batches(plan)
        # each weight is cast once an iteration, so a cache of casts would only keep memory
        with torch.autocast(inputs.device.type, torch.bfloat16, self.precision == "bf16", cache_enabled=False):
            logits = self.network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        return sums_of(loss, logits, labels)

    def state(self) -> list[Tensor]:
        """Every tensor that an iteration changes."""
        networks = [self.network] + ([self.ema.network] if self.ema else [])
        momentum = [value["momentum_buffer"] for value in self.optimizer.state.values()]
        return [value for network in networks for value in network.state_dict().values()] + momentum


def sums_of(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Of a batch with this mean loss: sum of losses, number of correct answers, number of images; (3,), no waiting."""
    count = torch.full_like(loss, len(labels))
    return torch.stack([loss * count, (logits.argmax(1) == labels).sum().to(loss.dtype), count]).detach()


def rehearse(step: TrainStep, plan: Tensor, times: int = REHEARSALS) -> None:
    """Does iterations that leave no trace: weights, momentum, statistics and averages are put back."""
    state = step.state()
    before = [value.clone() for value in state]
    try:
        for _ in range(times):
            step(plan)
    finally:
        with torch.no_grad():
            for value, saved in zip(state, before, strict=True):
                value.copy_(saved)


def compiled(step: TrainStep, plan: Tensor) -> None:
    """Compiles the step's network for batches like `plan`; where that fails, the step is as before and this raises."""
    eager = step.network
    torch.compiler.reset()  # what was compiled for another image size counts towards a limit
    step.network = torch.compile(eager, dynamic=False)
    try:
        rehearse(step, plan, 1)
    except Exception:
        step.network = eager
        raise


def captured(step: TrainStep, plan: Tensor) -> Callable[[Tensor], Tensor]:
    """The step as one CUDA graph: a call launches all of its kernels at once, where the host would need milliseconds.

    plan: rows as every call will bring them, on the current device. What a call returns is overwritten by the next.
    """
    static = plan.clone()
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            rehearse(step, static)
        current.wait_stream(stream)
        step.optimizer.zero_grad()  # so that the gradients are made anew in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sums = step(static)
    except Exception:
        torch.cuda.set_stream(current)  # which older versions leave at that of the capture
        step.optimizer.zero_grad()
        raise

    def replay(plan: Tensor) -> Tensor:
        static.copy_(plan)
        graph.replay()
        return sums

    replay.step = step  # whose memory the graph works on
    return replay


def accelerated(step: TrainStep, plan: Tensor, compiles: bool, captures: bool, processes: Processes = ALONE,
                say: Callable[[str], None] = print) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The step of all processes together, compiled, captured or both, as asked for.

    plan: rows as every call will bring them. `say` tells how long it took, or why it was not possible.
    """
    if compiles:
        eager = step.network  # compiled before the processes join, for then one may fail alone
        worked = attempt(lambda: compiled(step, plan), "compiled", say)
        if processes.largest(not worked)[0]:
            step.network = eager
    step.network = processes.together(step.network)
    if captures and plan.device.type != "cuda":
        say("not captured: that needs a CUDA GPU")
    elif captures and processes.count > 1:
        say("not captured: that is for a single process")
    elif captures:
        return attempt(lambda: captured(step, plan), "captured", say) or step
    return step


def attempt(make: Callable, done: str, say: Callable[[str], None]):
    """What `make` returns (or True), or None where it fails; as compilers and drivers do in many ways."""
    started = time.monotonic()
    try:
        made = make()
    except Exception as error:
        say(f"not {done}, going on without: {type(error).__name__}, {first_line(error)}")
        return None
    say(f"{done} in {time.monotonic() - started:.0f} s")
    return made or True
