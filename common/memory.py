"""Memory that a process has been given stays with it, to be used again."""

import ctypes

# mallopt's parameters (glibc, malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def reuse_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system; returns whether it can (glibc).

    By default every tensor beyond 32 MB is mapped anew, and the first touch of each of its pages costs more than what
    is computed on it: a batch norm of 50 MB took 65 ms instead of 7, a training step of MemAE 1.4 times as long. The
    process keeps its peak of memory until it ends. On a GPU, PyTorch does the same by itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows, macOS, musl
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**28)])
