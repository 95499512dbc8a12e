"""Measure the peak memory of this process."""

import resource
import sys


def peak_memory_bytes(children: bool = False) -> int:
    """Return the peak resident memory of this process in bytes.

    children: the largest peak of this process and of the child processes that it has waited for.
    """
    whose = (
        (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    )
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    return peak if sys.platform == "darwin" else peak << 10  # bytes on macOS, KiB on Linux
