"""The most memory that a process has held at once."""

import resource
import sys


def peak_memory_bytes(children: bool = False) -> int:
    """Of this process; with children, of the largest of it and those it has waited for."""
    whose = (
        (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    )
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    return peak if sys.platform == "darwin" else peak << 10  # bytes on macOS, KiB on Linux
