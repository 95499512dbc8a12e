"""Set the device, precision, thread count and seed that the profile asks for."""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from crawl2cart.core.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def has_fast_bfloat16() -> bool:
    """Return whether this machine multiplies bfloat16 faster than float32.

    Hardware that does: CUDA from Ampere on, x86 with AVX512-BF16 or AMX, ARM with BF16. Other
    machines emulate bfloat16, which is slower.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning large blocks to the kernel.

    This nearly halves the time of a training step on 2 cores.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Device:
    """A device and its precision.

    kind: `cpu` or `cuda`. dtype: of matrix products; weights stay in float32.
    """

    kind: str
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return a context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.dtype)


def open_device(kind: str, dtype: str, threads: int, seed: int) -> Device:
    """Fix thread count, seed and deterministic kernels, and print them.

    The thread count is part of the result: threads share sums, so another count changes the last
    bits. Raises UserError if the profile asks for CUDA and there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "The profile asks for device: cuda, but torch finds no CUDA device. "
            "Use `profile: cpu`, or run `make check PROFILE=gpu` to see what is missing."
        )
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # one card per process
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=kind == "cuda")
    # Deterministic mode fills every new tensor with NaN, which only helps debugging and costs 7 %
    # of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    if dtype == "bfloat16" and not has_fast_bfloat16():
        print(
            "This processor has no fast bfloat16. The results are right but the run is slow; "
            "`dvc exp run -S profiles.cpu.dtype=float32` is faster here.",
            flush=True,
        )
    print(f"device {kind}, {threads} threads, matrix products in {dtype}", flush=True)
    return Device(kind, getattr(torch, dtype))
