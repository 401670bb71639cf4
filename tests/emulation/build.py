"""Builds what g++ makes of the CUDA sources for the emulator, once per state of the sources."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

EMULATION = Path(__file__).resolve().parent
ROOT = EMULATION.parents[1]
KEPT = 4  # builds of earlier sources

# What the planted mistakes use of the project; all else may change without a build of theirs.
WRAPPERS = [
    "csrc/cuda/barriers.cuh",
    "csrc/cuda/convert.cuh",
    "csrc/cuda/copy.cuh",
    "csrc/cuda/launch.cuh",
    "csrc/cuda/mma.cuh",
    "csrc/cuda/shared.cuh",
    "csrc/include/logo",
]
SOURCES = {
    "planted": ["tests/emulation", *WRAPPERS],
    "addresses": ["tests/emulation", *WRAPPERS],
    "_emulated": ["tests/emulation", "csrc"],
    "bounds": ["tests/emulation", "tests/cuda_kernels", "csrc"],
}
SUFFIXES = {".cpp", ".cu", ".cuh", ".h", ".txt"}


@cache
def build(target: str) -> Path:
    """The path of one of SOURCES, built unless it is there already."""
    folder = _writable_folder() / f"emulation-{target.strip('_')}-{_hash(target)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "emulation.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest-xdist: one builds, the others wait
        if not (folder / "done").exists():
            _drop_old_builds(folder.parent, target)
            _cmake(target, folder)
            (folder / "done").touch()
    (artefact,) = [path for path in folder.glob(f"{target}*") if path.is_file()]
    return artefact


@cache
def load(target: str) -> ModuleType:
    """A module that was built; its settings are its own."""
    spec = importlib.util.spec_from_file_location(target, build(target))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cmake(target: str, folder: Path) -> None:
    missing = [
        tool for tool in ("g++", "cmake", "ninja") if shutil.which(tool, path=_path()) is None
    ]
    if missing:
        raise RuntimeError(f"the emulator of the CUDA kernels cannot be built without {missing}")
    configure = [
        *("cmake", "-S", EMULATION, "-B", folder, "-G", "Ninja"),
        "-DCMAKE_CXX_COMPILER=g++",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    for command in (configure, ["cmake", "--build", folder, "--target", target]):
        result = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "PATH": _path()},
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise RuntimeError(f"building {target} failed:\n{result.stdout}{result.stderr}")


def _path() -> str:
    """With the tools of this Python's environment, also where nobody activated it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _hash(target: str) -> str:
    digest = hashlib.sha256(f"{sys.executable} {pybind11.__version__}".encode())
    for source in SOURCES[target]:
        top = ROOT / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _writable_folder() -> Path:
    folder = ROOT / "build"
    writable = os.access(folder if folder.exists() else ROOT, os.W_OK)
    return folder if writable else Path(tempfile.gettempdir()) / f"logo-kernels-{os.getuid()}"


def _drop_old_builds(folder: Path, target: str) -> None:
    builds = folder.glob(f"emulation-{target.strip('_')}-*")
    for old in sorted(builds, key=lambda path: path.stat().st_mtime)[: -KEPT or None]:
        shutil.rmtree(old, ignore_errors=True)
