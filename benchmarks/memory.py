"""The peak memory of a process."""

import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    """MiB of memory at this process's peak.

    Linux's ru_maxrss also counts what the parent held when it started this process; VmHWM does not.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
