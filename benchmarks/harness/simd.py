"""One instruction set for all of a CPU's contestants, narrower than what the processor has.

Ours is told by the extension. torch and the libraries below it read the environment once, when they
are loaded, so a run with `--simd` starts itself again in a process that has it.
"""

from __future__ import annotations

import getpass
import os
import tempfile

import torch

from .package import extension, reason

# Of torch's own kernels and its compiler, of oneDNN and of MKL.
ENVIRONMENTS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


def environment(simd: str) -> dict[str, str]:
    """This process's environment with torch held to `simd`.

    Compiled code lies in a folder of its own: torch's cache does not ask for which instructions a
    graph was compiled.
    """
    plain = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", plain)
    return {**os.environ, **ENVIRONMENTS[simd], "TORCHINDUCTOR_CACHE_DIR": f"{cache}_{simd}"}


def is_held_to(simd: str) -> bool:
    """Whether this process was started in such an environment."""
    return ENVIRONMENTS[simd].items() <= os.environ.items()


def use(simd: str) -> None:
    """Tells the extension, in a process that is held to `simd`; RuntimeError where torch is not."""
    if extension is None:
        raise RuntimeError(f"--simd {simd} needs the extension: {reason}")
    if torch_simd() != simd:
        raise RuntimeError(
            f"--simd {simd}: torch uses {torch_simd()} all the same; this processor has no {simd}, "
            f"or torch was not started with {ENVIRONMENTS[simd]}"
        )
    extension.use_simd(simd)


def current() -> str:
    """What ours uses."""
    return torch_simd() if extension is None else extension.current_simd()


def torch_simd() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()
