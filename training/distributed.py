"""One training by several processes, as torchrun starts them: what each has to know, and how they agree."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = 3  # seconds that the others wait with their error: it is mostly the first one's, and ends them, too


@dataclass(frozen=True)
class Processes:
    """The processes of a training; by default a single one, with which nothing here does anything.

    rank, count   the number of this one, from 0, and how many there are
    local_rank    its number among those of its machine, which is that of its GPU
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __str__(self) -> str:
        """As it stands before the name of the device."""
        return f"{self.count} processes of " if self.count > 1 else ""

    @property
    def is_first(self) -> bool:
        """The first process alone prints and writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Which part of a batch this process works on: all have equal ones."""
        each = batch // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, which they all get; `values` stays as it is."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def largest(self, *values: float) -> list[float]:
        """The largest over all processes of each of these numbers; on the host alone."""
        if self.count == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def agree_on(self, value: Any) -> bool:
        """Whether all processes have the same value as the first."""
        return self.largest(value != self.from_first(lambda: value)) == [0]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, in all of them."""
        if self.count == 1:
            return make()
        value = [make() if self.is_first else None]
        dist.broadcast_object_list(value, device=torch.device("cpu"))
        return value[0]

    @contextmanager
    def in_turns(self) -> Iterator[None]:
        """The block, in the first process, then in one of each machine, then in the others: a download happens once."""
        turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.largest(0)
        yield
        for _ in range(turn, 2):
            self.largest(0)

    def share_statistics(self, network: nn.Module) -> None:
        """Gives all processes the batch norm statistics of the first; each has those of its own part of the batches."""
        if self.count > 1:
            for value in network.buffers():
                dist.broadcast(value, 0)

    def together(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are the mean over all processes."""
        if self.count == 1:
            return network
        device = next(network.parameters()).device
        return nn.parallel.DistributedDataParallel(
            network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes this one belongs to: those of torchrun, or itself alone.

    All but the first are silent. When one fails, its error ends the others, too. Raises ConnectionError when others
    cannot be reached any more. device: "cpu", or else they may talk through their GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    rank, count, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    uses_gpus = device != "cpu" and torch.cuda.is_available()
    if ":" in device:
        raise OSError(f"--device {device} is one device: leave the number out, and each process takes its own")
    dist.init_process_group("cpu:gloo,cuda:nccl" if uses_gpus else "gloo")
    try:
        with silence(rank > 0):
            yield Processes(rank, count, local_rank)
    except Exception as error:
        time.sleep(PATIENCE if rank > 0 else 0)
        if is_of_connection(error):
            raise ConnectionError("another process of this training has ended: see its error; then --resume") from error
        raise
    except SystemExit:  # as wanted
        dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()


def is_of_connection(error: Exception) -> bool:
    """Whether it says that other processes are gone; gloo has no class of errors for that."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


@contextmanager
def silence(wanted: bool) -> Iterator[None]:
    """Nothing of what the block prints is seen, if so wanted."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
    sys.stdout.flush()
