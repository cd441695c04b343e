"""Two ways to make a training step faster: torch.compile and one CUDA graph per iteration."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.checkpoint import first_line
from training.distributed import ALONE, World
from training.step import TrainStep

Batch = tuple[Tensor, Tensor | None]  # rows and images, as `Batches.iterate` yields them
WARM_UP_STEPS = 3  # iterations before a capture, in which libraries choose algorithms and allocate memory


def warm_up(step: TrainStep, batch: Batch, count: int = WARM_UP_STEPS) -> None:
    """Runs iterations and restores weights, momentum, statistics and averages afterwards."""
    state = step.state()
    before = [value.clone() for value in state]
    try:
        for _ in range(count):
            step(*batch)
    finally:
        with torch.no_grad():
            for value, saved in zip(state, before, strict=True):
                value.copy_(saved)


def compile_network(step: TrainStep, batch: Batch) -> None:
    """Compiles the step's network for batches like this one; if that fails, restores the step and raises."""
    eager = step.network
    torch.compiler.reset()  # code compiled for another image size counts towards a limit
    step.network = torch.compile(eager, dynamic=False)
    try:
        warm_up(step, batch, 1)
    except Exception:
        step.network = eager
        raise


def capture(step: TrainStep, batch: Batch) -> Callable[..., Tensor]:
    """The step as one CUDA graph: one launch replaces hundreds, which would cost the host milliseconds.

    batch: shaped as in every later call, on the current device; the graph reads copies of its own. A call's result is
    overwritten by the next call.
    """
    static = [value.clone() for value in batch if value is not None]
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            warm_up(step, static)
        current.wait_stream(stream)
        step.optimizer.zero_grad()  # so that the graph allocates the gradients in its own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sums = step(*static)
    except Exception:
        torch.cuda.set_stream(current)  # older versions leave the capture's stream current
        step.optimizer.zero_grad()
        raise

    def replay(*batch: Tensor | None) -> Tensor:
        for value, new in zip(static, batch, strict=False):
            value.copy_(new)
        graph.replay()
        return sums

    replay.step = step  # keeps alive the memory that the graph uses
    return replay


def accelerate(step: TrainStep, batch: Batch, use_compile: bool, use_cuda_graph: bool | None, world: World = ALONE,
               say: Callable[[str], None] = print) -> Callable[..., Tensor]:  # fmt: skip
    """The step of all processes, compiled, captured or both, as requested; `say` reports durations and failures.

    batch           shaped as in every later call
    use_cuda_graph  None: on a CUDA GPU with one process
    """
    is_on_gpu = batch[0].device.type == "cuda"
    step.network = world.wrap_ddp(step.network)
    if use_compile:
        # In several processes around DistributedDataParallel, so that gradients are reduced while others are computed.
        # There a failure ends the run: a process that falls back alone would wait for the others.
        attempt(lambda: compile_network(step, batch), "compiled", say, "leave out --compile", world.size == 1)
    if is_on_gpu and world.size == 1 and use_cuda_graph is not False:
        # older versions leave the allocator in a capturing state (pytorch#180395)
        may_fail = torch.__version__ >= (2, 9)
        return attempt(lambda: capture(step, batch), "captured", say, "pass --no-cuda-graph", may_fail) or step
    if use_cuda_graph:
        say(f"not captured: this needs {'a single process' if is_on_gpu else 'a CUDA GPU'}")
    return step


def attempt(make: Callable, done: str, say: Callable[[str], None], advice: str, may_fail: bool):
    """The result of `make`, or None if it fails: compilers and drivers fail in many ways.

    Raises OSError with `advice` instead if it must not fail.
    """
    started = time.monotonic()
    try:
        result = make()
    except Exception as error:
        if not may_fail:
            raise OSError(f"not {done} ({first_line(error)}): {advice}") from error
        say(f"not {done}, continuing without: {type(error).__name__}, {first_line(error)}")
        return None
    say(f"{done} in {time.monotonic() - started:.0f} s")
    return result
