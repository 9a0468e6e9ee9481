"""Kept memory is used again, and a C library that cannot keep it is no obstacle."""

import ctypes
import subprocess
import sys

import pytest

from common.runtime import reuse_memory

CODE = """
import resource, sys
import numpy as np
from common.runtime import reuse_memory
if sys.argv[1] == "keep" and not reuse_memory():
    sys.exit(3)
def touch():
    return np.ones(16_000_000, np.float32).sum()  # 64 MB
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    run = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, timeout=60)
    if run.returncode == 3:
        pytest.skip("the C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_memory_is_not_mapped_anew():
    assert faults("keep") < 100


def test_without_glibc_it_says_no(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert reuse_memory() is False
