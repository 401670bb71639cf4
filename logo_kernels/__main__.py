"""``python -m logo_kernels``: what works on this machine, and why the rest does not.

With ``--verify``, whether what works also computes what it should.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence

import torch

from . import __version__, available_backends
from .backends import BACKENDS, Request
from .backends.extension import extension


def versions() -> list[str]:
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    if torch.version.hip:
        built = f"ROCm {torch.version.hip}"
    else:
        built = f"CUDA {torch.version.cuda or 'none (CPU build)'}"
    return [
        f"logo_kernels  {__version__}",
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch         {torch.__version__}, {built}",
        f"triton        {triton_version}",
    ]


def devices() -> list[str]:
    lines = [f"cpu           {torch.get_num_threads()} threads"]
    if extension is not None:
        lines[0] += (
            f", kernels for {', '.join(extension.simds())}; in use: {extension.current_simd()}"
        )
        if not extension.openmp:
            lines[0] += "; built without OpenMP: one thread"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            lines.append(f"cuda:{index}        {name}, compute capability {major}.{minor}")
            lines += [f"              {reason}" for reason in refusals(index)]
    if extension is not None:
        built = extension.cuda.architectures or "none (built without nvcc)"
        lines.append(f"built for     CUDA architectures {built}")
    return lines


def refusals(device: int) -> list[str]:
    """The reasons of backends that work on this machine and not on this one of its GPUs."""
    request = Request("similarity", "cuda", frozenset([torch.bfloat16]), 1, 8)
    with torch.cuda.device(device):
        return [
            f"{name} does not work here: {reason}"
            for name in ("triton", "cuda")
            if BACKENDS[name].missing() is None
            and (reason := BACKENDS[name].refuses(request)) is not None
        ]


def backends() -> list[str]:
    return [
        f"{name:<13} {'works' if reason is None else 'missing: ' + reason}"
        for name, reason in available_backends().items()
    ]


def report() -> None:
    for title, lines in (
        ("versions", versions()),
        ("devices", devices()),
        ("backends", backends()),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m logo_kernels", description=__doc__)
    parser.add_argument(
        "--verify", nargs="*", metavar="NAME",
        help="run the kernels against float64, all or those of the backends and operations named; "
        "exit status 1 if a number is wrong",
    )  # fmt: skip
    names = parser.parse_args(arguments).verify
    if names is None:
        report()
        return 0
    from . import verify

    return verify.main(names)


if __name__ == "__main__":
    raise SystemExit(main())
