"""Freed memory stays with the process."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="it queries glibc's allocator")
def test_a_freed_block_is_not_faulted_in_again() -> None:
    script = """
import resource, torch
from rfdit.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(64 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
assert keep_freed_memory()
for _ in range(4):
    faults()
print(default, faults())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    default, kept = map(int, run.stdout.split())
    assert kept < default / 10
