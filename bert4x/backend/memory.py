"""How the C library's allocator treats large arrays that are freed."""

import ctypes
import sys

# Parameters of glibc's mallopt(3). The first value is the largest that it takes.
_MMAP_THRESHOLD, _LARGEST = -3, 32 * 2**20
_TRIM_THRESHOLD, _KEPT = -1, 2**30


def reuse_freed_memory():
    """Let freed arrays of up to 32 MiB be used again, instead of going back to the system at once.

    TensorFlow sets that limit to 128 KiB whenever a generator becomes a data set under Python 3.11 or later
    (`ApplyPython311MemoryPatch`). Every larger tensor then is new pages, which the kernel clears one by one: close to
    half of the processor time of a training step on a CPU. Up to 1 GiB of freed memory stays with the process.
    Nothing happens where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
