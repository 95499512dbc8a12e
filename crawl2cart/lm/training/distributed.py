"""Several processes that train one model: `torchrun --nproc_per_node=4 -m stages.pretrain gpt_oss`, or those a stage starts itself.

Each process takes its share of a step's rows. Gradients are averaged over all of them (DDP, Li et al. 2020,
https://arxiv.org/abs/2006.15704); or each keeps only a part of every weight, gradient and optimizer state and fetches the
rest when a layer needs it (FSDP2, Zhao et al. 2023, https://arxiv.org/abs/2304.11277). The result is the same but for rounding.
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

MEETING = "CRAWL2CART_MEETING"  # in the environment of a process that a stage started: the file by which it finds the others
SECONDS_TO_END = 5.0  # in which a process whose connection broke is seen to have ended


@dataclass(frozen=True)
class ProcessGroup:
    """rank: which process this is. size: how many there are."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over all processes, in every one."""
        if self.size > 1:
            dist.all_reduce(x)
        return x / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """Every process's rows (n, …) one after the other, (n · size, …), in every one."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def shard(self, items: Sequence) -> Sequence:
        """This process's part of what there is to do."""
        return items[self.rank :: self.size]

    def all_gather(self, own: list) -> list:
        """The results of all shares in the order of the items, in every process."""
        if self.size == 1:
            return own
        parts: list[list] = [[]] * self.size
        dist.all_gather_object(parts, own)
        return [
            parts[number % self.size][number // self.size] for number in range(sum(map(len, parts)))
        ]

    def async_broadcast(
        self, make: Callable[[], Tensor], like: Tensor, number: int
    ) -> Callable[[], Tensor]:
        """What one process makes, told to all, as bfloat16: the number-th of many tasks that go round. Waits when it is asked for.

        like: a whole tensor of its shape, not one that is split among processes, who would wait for each other to make it.
        """
        if self.size == 1:
            made = make()
            return lambda: made
        source = number % self.size
        # What is sent are bytes: gloo asks nobody how they lie, and a transposed tensor would arrive in another order.
        tensor = (make() if source == self.rank else like).bfloat16().contiguous()
        sent = dist.broadcast(tensor, source, async_op=True)

        def wait() -> Tensor:
            sent.wait()
            return tensor.to(like.dtype)

        return wait

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = ProcessGroup(0, 1)


@contextlib.contextmanager
def open_world(
    kind: str, processes: int = 1, program: Sequence[str] = ()
) -> Iterator[ProcessGroup]:
    """Joins the processes that torchrun started. Without torchrun this one is the first of `processes`, and starts the others.

    kind: `cpu` or `cuda`. program: what follows `python` to start another one, Stage.program. On a CPU two processes of one thread train
    a small model faster than one of two: much of a step is work that threads do not share.
    """
    size = int(os.environ.get("WORLD_SIZE", processes))
    if size == 1:
        yield ALONE
        return
    try:
        if "WORLD_SIZE" not in os.environ:
            with others(size, program) as store:
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
def others(size: int, program: Sequence[str]) -> Iterator[dist.Store]:
    """Starts the program size - 1 times, waits until all have come so far, and gives the store by which they find each other.

    Ends them behind the block: what they found has arrived. Raises UserError if one of them ends before.
    """
    os.environ.setdefault(
        "GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"
    )  # they speak inside this machine
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        store, started = dist.FileStore(meeting, size), []
        try:
            for rank in range(1, size):
                started.append(
                    subprocess.Popen(
                        [sys.executable, *program],
                        stdout=subprocess.DEVNULL,
                        env=os.environ
                        | {
                            MEETING: meeting,
                            STARTER: str(os.getpid()),
                            "WORLD_SIZE": str(size),
                            "RANK": str(rank),
                        },
                    )
                )
            while not store.check(
                [f"started {rank}" for rank in range(1, size)]
            ):  # gloo would wait half an hour for one that never comes
                if loss := lost(started, 0):
                    raise UserError(loss)
                time.sleep(0.02)
            yield store
        except (
            RuntimeError
        ) as error:  # an error of this process, or what gloo says of another that is gone
            if loss := lost(started, SECONDS_TO_END):
                raise UserError(loss) from error
            raise
        finally:
            for process in started:
                process.kill()
                process.wait()


def lost(processes: list[subprocess.Popen], seconds: float) -> str | None:
    """What became of the first that ends within so many seconds, None if all go on."""
    deadline = time.monotonic() + seconds
    while True:
        for code in (process.poll() for process in processes):
            if code is not None and code < 0:
                return (
                    f"One of the processes of this run was ended by {signal.Signals(-code).name}. If nobody did that, memory was "
                    "short: fewer `processes` in the profile take less."
                )
            if code is not None:
                return "One of the processes of this run failed; what it said stands above."
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


class Loss(nn.Module):
    """A model whose call is its loss: DDP averages the gradients of what goes through a call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return self.model.loss(*batch)


def wrap_distributed(model: nn.Module, world: ProcessGroup, sharded: bool) -> Callable:
    """The model's loss with gradients that are averaged over the processes. sharded: FSDP2, which also splits the weights."""
    if world.size == 1:
        return model.loss
    if not sharded:
        return DistributedDataParallel(Loss(model))
    from torch.distributed.fsdp import (
        fully_shard,
        register_fsdp_forward_method,
    )  # a second, which one process need not wait

    for layer in model.children():
        if isinstance(layer, nn.ModuleList):
            for block in layer:
                fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    return model.loss


def sync_on_last(loss: Callable, last: bool) -> contextlib.AbstractContextManager:
    """A context for one part of a step: gradients are added up alone and averaged with the last part."""
    if isinstance(loss, DistributedDataParallel) and not last:
        return loss.no_sync()
    return contextlib.nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that is split among processes; any other as it is. All processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, the same in every process, split among them as `like` is; as it is where `like` is not split."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    )  # each has it: nothing is sent
