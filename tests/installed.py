"""What an installed package has to do, by itself: python tests/installed.py [ARCHITECTURES]

Run from outside of a checkout, in any environment that has the package and torch. ARCHITECTURES,
where given, are those of the CUDA kernels, empty for a package without.
"""

import sys

import torch

import logo_kernels
from logo_kernels.backends.extension import extension

backends = logo_kernels.available_backends()
assert backends["cpu"] is None, backends
x = torch.randn(4, 2, 32, requires_grad=True)
y = torch.randn(4, 3, 32, requires_grad=True)
logo_kernels.logo_loss(x, y, backend="cpu").backward()
assert x.grad.abs().sum() > 0
assert y.grad.abs().sum() > 0
if sys.argv[1:]:
    assert extension.cuda.architectures == sys.argv[1], extension.cuda.architectures
    assert sys.argv[1] or "nvcc" in backends["cuda"]
if sys.platform == "linux":
    with open("/proc/self/maps") as maps:
        runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    assert len(runtimes) == 1, f"more than torch's own OpenMP: {runtimes}"
if not getattr(sys, "_is_gil_enabled", lambda: True)() or "t" in getattr(sys, "abiflags", ""):
    assert not sys._is_gil_enabled(), "the extension has switched the GIL on"
print(logo_kernels.__file__)
