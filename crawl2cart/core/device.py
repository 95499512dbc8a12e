"""Where and in which precision tensors are computed, from the profile."""

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
    """Whether this machine multiplies bfloat16 faster than float32: CUDA from Ampere on, AVX512-BF16 or AMX on x86,
    BF16 on ARM. Elsewhere bfloat16 is emulated and slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors free instead of giving every large block back to the kernel and fetching it anew.

    On 2 cores a training step of transformers took half the time so: 2.4 s instead of 4.3 s for 8 rows of 800 tokens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Device:
    """kind: `cpu` or `cuda`. dtype: what matrix products are computed in; weights stay in float32."""

    kind: str
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context in which matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.dtype)


def open_device(kind: str, dtype: str, threads: int, seed: int) -> Device:
    """Fixes thread count, seed and deterministic kernels, and says what is used.

    The thread count is part of the result: sums are split among threads, so other counts give other last bits.
    Raises UserError if the profile asks for CUDA where there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "The profile asks for device: cuda, but torch finds no CUDA device. "
            "Use `profile: cpu` or run `make check PROFILE=gpu` to see what is missing."
        )
    if kind == "cuda":
        torch.cuda.set_device(
            int(os.environ.get("LOCAL_RANK", "0"))
        )  # of several processes each has a card
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=kind == "cuda")
    # Otherwise every new tensor is first filled with NaN, to show who reads what was never written: 7 % of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    if dtype == "bfloat16" and not has_fast_bfloat16():
        print(
            "This processor has no fast bfloat16: the run is right but slow; "
            "`dvc exp run -S profiles.cpu.dtype=float32` is faster here.",
            flush=True,
        )
    print(f"device {kind}, {threads} threads, matrix products in {dtype}", flush=True)
    return Device(kind, getattr(torch, dtype))
