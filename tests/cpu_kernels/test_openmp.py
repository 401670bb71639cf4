"""The extension runs on torch's own OpenMP pool."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, torch
from logo_kernels import logo_loss

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads({threads})
x = torch.randn(256, 2, 512)
counts = [threads()]
for _ in range(3):
    logo_loss(x, x, backend="cpu")
counts.append(threads())
torch.ones(1 << 22).sum()  # torch's own parallel work
counts.append(threads())
runtimes = {{line.split()[-1] for line in open("/proc/self/maps")
            if any(name in line for name in ("libgomp", "libomp", "libiomp"))}}
print(len(runtimes), counts[1] - counts[0], counts[2] - counts[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_one_pool_of_the_size_that_torch_was_told(threads, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(threads=threads)],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    runtimes, ours, torchs = map(int, done.stdout.split())
    assert runtimes == 1  # a second OpenMP runtime would be a second pool
    assert ours == threads - 1  # the calling thread is one of them
    assert torchs == 0  # torch finds the pool already there
