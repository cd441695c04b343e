"""Two ways to make a training step faster: torch.compile and one CUDA graph per iteration."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from runtime.checkpoint import first_line
from training.distributed import ALONE, World
from training.step import TrainStep

Batch = tuple[Tensor, Tensor | None]  # rows and images, as `Batches.iterate` yields them


def warm_up(step: TrainStep, batch: Batch, count: int) -> None:
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
            warm_up(step, static, 3)  # libraries choose algorithms and allocate memory
        current.wait_stream(stream)
        step.optimizer.zero_grad()  # so that the graph allocates the gradients in its own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sums = step(*static)
    finally:
        torch.cuda.set_stream(current)  # a failed capture can leave its own stream current

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

    batch: as in every later call. use_cuda_graph: None: on a CUDA GPU with one process. Raises OSError if not compiled.
    """
    step.network, started = world.wrap_ddp(step.network), time.monotonic()
    if use_compile:  # around DistributedDataParallel, so that gradients are reduced while others are computed
        torch.compiler.reset()  # code compiled for another image size counts towards a limit
        step.network = torch.compile(step.network, dynamic=False)
        try:
            warm_up(step, batch, 1)
        except Exception as error:  # compilers fail in many ways
            raise OSError(f"not compiled ({first_line(error)}): leave out --compile") from error
        say(f"compiled in {time.monotonic() - started:.0f} s")
    on_gpu, started = batch[0].device.type == "cuda", time.monotonic()
    if use_cuda_graph and not (on_gpu and world.size == 1):
        say(f"not captured: this needs {'a single process' if on_gpu else 'a CUDA GPU'}")
    if use_cuda_graph is False or not on_gpu or world.size > 1:
        return step
    try:
        replay = capture(step, batch)
    except Exception as error:  # drivers fail in many ways
        say(f"not captured, continuing without: {type(error).__name__}, {first_line(error)}")
        return step
    say(f"captured in {time.monotonic() - started:.0f} s")
    return replay
