"""Several processes that train one model.

torchrun starts them (`torchrun --nproc_per_node=4 -m stages.pretrain gpt_oss`), or the stage does.
Each process takes its share of a step's rows. Either gradients are averaged over all processes
(DDP, Li et al. 2020, https://arxiv.org/abs/2006.15704), or each process keeps only a part of every
weight, gradient and optimizer state and fetches the rest when a layer needs it (FSDP2, Zhao et al.
2023, https://arxiv.org/abs/2304.11277). The result is the same but for rounding.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crawl2cart.core.errors import UserError
from crawl2cart.core.stage import STARTER

# In the environment of a process that a stage started: the file by which it finds the others.
MEETING = "CRAWL2CART_MEETING"
# A process whose connection broke has ended within this time, if it ends.
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them.

    rank: which one this is. size: how many there are.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of x over all processes, in every one. x is overwritten."""
        if self.size > 1:
            dist.all_reduce(x)
        return x / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """Return all processes' rows (n, …) in order of rank, (n · size, …), in every process."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def shard(self, items: Sequence) -> Sequence:
        """Return this process's share of the items: every size-th of them."""
        return items[self.rank :: self.size]

    def all_gather(self, own: list) -> list:
        """Return the results of all shares in the order of the items, in every process."""
        if self.size == 1:
            return own
        parts: list[list] = [[]] * self.size
        dist.all_gather_object(parts, own)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def async_broadcast(
        self, make: Callable[[], Tensor], like: Tensor, number: int
    ) -> Callable[[], Tensor]:
        """Let one process make a tensor and send it to all; return a function that waits for it.

        number: of the task; tasks go round among the processes. like: a full tensor of the result's
        shape. What is sent is bfloat16.
        """
        if self.size == 1:
            made = make()
            return lambda: made
        source = number % self.size
        # gloo sends bytes as they lie: a transposed tensor would arrive in another order.
        tensor = (make() if source == self.rank else like).bfloat16().contiguous()
        sending = dist.broadcast(tensor, source, async_op=True)

        def wait() -> Tensor:
            sending.wait()
            return tensor.to(like.dtype)

        return wait

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = ProcessGroup(0, 1)


@contextlib.contextmanager
def open_process_group(
    kind: str, processes: int = 1, program: Sequence[str] = ()
) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, or start `processes - 1` others and be the first.

    kind: `cpu` or `cuda`. program: what follows `python` to start another one, Stage.program.
    On a CPU two processes of one thread train a small model faster than one of two threads.
    """
    size = int(os.environ.get("WORLD_SIZE", processes))
    if size == 1:
        yield ALONE
        return
    try:
        if "WORLD_SIZE" not in os.environ:
            with start_others(size, program) as store:
                dist.init_process_group("gloo", store=store, rank=0, world_size=size)
                yield ProcessGroup(0, size)
            return
        if MEETING in os.environ:
            rank, store = int(os.environ["RANK"]), dist.FileStore(os.environ[MEETING], size)
            store.set(f"started {rank}", "")
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        else:
            if kind == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        yield ProcessGroup(dist.get_rank(), size)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def start_others(size: int, program: Sequence[str]) -> Iterator[dist.Store]:
    """Start the program size - 1 times and yield the store by which all find each other.

    Kills them behind the block: by then their results have arrived. Raises UserError if one of
    them ends before.
    """
    # They speak inside this machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        store = dist.FileStore(meeting, size)
        common = {MEETING: meeting, STARTER: str(os.getpid()), "WORLD_SIZE": str(size)}
        others: list[subprocess.Popen] = []
        try:
            for rank in range(1, size):
                environment = os.environ | common | {"RANK": str(rank)}
                command = [sys.executable, *program]
                others.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment))
            # gloo would wait half an hour for one that never comes.
            while not store.check([f"started {rank}" for rank in range(1, size)]):
                if failure := describe_failure(others, 0):
                    raise UserError(failure)
                time.sleep(0.02)
            yield store
        except RuntimeError as error:  # of this process, or gloo's about another that is gone
            if failure := describe_failure(others, SECONDS_TO_END):
                raise UserError(failure) from error
            raise
        finally:
            for process in others:
                process.kill()
                process.wait()


def describe_failure(processes: list[subprocess.Popen], seconds: float) -> str | None:
    """Return how the first process ended that ends within so many seconds; None if all go on."""
    deadline = time.monotonic() + seconds
    while True:
        for code in (process.poll() for process in processes):
            if code is not None and code < 0:
                return (
                    f"{signal.Signals(-code).name} ended one of the processes of this run. If "
                    "nobody did that, memory was short: lower num_processes in the profile."
                )
            if code is not None:
                return "One of the processes of this run failed. Its message stands above."
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


class Loss(nn.Module):
    """A model whose call is its loss: DDP averages gradients of what goes through a call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return self.model.loss(*batch)


def wrap_distributed(model: nn.Module, group: ProcessGroup, sharded: bool) -> Callable:
    """Return the model's loss, with gradients averaged over the processes.

    sharded: with FSDP2, which also splits the weights.
    """
    if group.size == 1:
        return model.loss
    if not sharded:
        return DistributedDataParallel(Loss(model))
    # Takes a second to import, which a single process need not wait for.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for layer in model.children():
        if isinstance(layer, nn.ModuleList):
            for block in layer:
                fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    return model.loss


def sync_on_last(loss: Callable, last: bool) -> contextlib.AbstractContextManager:
    """Return a context for one part of a step: gradients are averaged with the last part only."""
    if isinstance(loss, DistributedDataParallel) and not last:
        return loss.no_sync()
    return contextlib.nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of one that FSDP2 split; any other as it is. All processes call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """Split a full tensor among the processes as `like` is; return it as it is if `like` is not."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank None: every process has it, nothing is sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
