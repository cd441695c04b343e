"""Training in several processes, as torchrun starts them; a single one does not communicate."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

ERROR_GRACE_SECONDS = 3  # before other ranks report an error: it is mostly rank 0's, which ends them, too


@dataclass(frozen=True)
class World:
    """The processes of a training; by default a single one."""

    rank: int = 0  # of this process
    size: int = 1  # number of processes, torch's world size
    local_rank: int = 0  # among the processes of this machine; also the index of its GPU

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one to print and write."""
        return self.rank == 0

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in all of them; `values` is not changed."""
        total = values.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def all_reduce_max(self, *values: float) -> list[float]:
        """The maximum over all processes of each number; on the host."""
        if self.size == 1:
            return list(values)
        maxima = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in rank 0, in all processes."""
        if self.size == 1:
            return make()
        value = [make() if self.is_main else None]
        dist.broadcast_object_list(value, device=torch.device("cpu"))
        return value[0]

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Runs the block in rank 0, then in one process of each machine, then in the others: one download."""
        if self.size == 1:
            yield
            return
        group = dist.new_group(backend="gloo", timeout=timedelta(days=7))  # torch's 30 minutes are too short
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for now in range(3):
            if now == turn:
                yield
            dist.barrier(group)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copies rank 0's batch-norm statistics to all processes; each has those of its own shards."""
        if self.size > 1:
            for value in network.buffers():
                dist.broadcast(value, 0)

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all processes."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        devices = [device] if device.type == "cuda" else None
        # Buffers are not broadcast before every forward pass: training does not read them, evaluation broadcasts them.
        name = "broadcast_buffers" if torch.__version__ < (2, 13) else "forward_sync_buffers"
        return nn.parallel.DistributedDataParallel(network, devices, gradient_as_bucket_view=True, **{name: False})


ALONE = World()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The processes that torchrun started, or this one alone. All but rank 0 are silent; an error in one ends all.

    device: "cpu" excludes communication through GPUs. Raises ConnectionError if others cannot be reached any more.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not os.environ.keys() >= set(names):
        yield ALONE
        return
    world = World(*(int(os.environ[name]) for name in names))
    if ":" in device:
        raise OSError(f"--device {device} names one device: leave the number out, and each process takes its own")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo")
    try:
        with nullcontext() if world.is_main else _silent():
            yield world
    except Exception as error:
        time.sleep(0 if world.is_main else ERROR_GRACE_SECONDS)
        # gloo has no error class for a lost connection
        if isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error)):
            raise ConnectionError("another process of this training has ended: see its error; then --resume") from error
        raise
    except SystemExit:  # on purpose
        dist.destroy_process_group()
        raise
    sys.stdout.flush()
    dist.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
