"""Runs the tests of the CPU backend on an extension that watches itself.

    python tests/sanitize.py                                   on every instruction set that is here
    python tests/sanitize.py tests/cpu_kernels -k affinity     what pytest is given

AddressSanitizer sees a byte beside a tensor, UndefinedBehaviorSanitizer what C++ leaves open; any
report ends the run or fails a test. The extension is built apart, in build/sanitized, by g++, on
Linux.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "sanitized"
PACKAGES = BUILT / "packages"
# Without optimisation: it would take three times as long to compile, and the tests as long to run.
FLAGS = "-O0 -g1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
ALL = ["tests", "-k", "cpu or anything", "-n", "auto", "--maxprocesses", "4"]
# cmake and ninja that came by pip lie beside the Python, which may be run by its path.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def build() -> None:
    """The package in PACKAGES; of the extension, what has changed since."""
    package = PACKAGES / "logo_kernels"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "logo_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    configure = [
        *("cmake", "-S", ROOT, "-B", BUILT / "cmake", "-G", "Ninja"),
        *("-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={FLAGS}"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DLOGO_KERNELS_CUDA=off",
    ]
    for command in (configure, ["cmake", "--build", BUILT / "cmake"]):
        subprocess.run(command, env={**os.environ, "PATH": PATH}, check=True)
    for extension in (BUILT / "cmake").glob("_C*.so"):
        shutil.copy(extension, package)


def watched() -> dict[str, str]:
    """The environment in which Python loads the runtimes of the sanitizers before all else."""
    # The runtime of C++ beside them: they look for its functions before Python loads it.
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return {
        **os.environ,
        "PATH": PATH,
        "PYTHONPATH": str(PACKAGES),
        "LD_PRELOAD": " ".join(libraries),
        # What Python leaves to the end of the process is no leak of ours.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    build()
    words = [str(ROOT / w) if (ROOT / w).exists() else w for w in sys.argv[1:] or ALL]
    # A report ends its process, so its test fails. It is written past Python: pytest must not have
    # taken the descriptor. From a folder without another `logo_kernels`, which would come first.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--capture=sys", *words],
        cwd=PACKAGES,
        env=watched(),
        check=False,
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
