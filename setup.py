"""Builds the C++ extension with CMake and ninja; everything else stands in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeExtension(Extension):
    """An extension that CMake builds from the source tree of this file."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        destination = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("LOGO_KERNELS_CUDA", "auto")
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"LOGO_KERNELS_CUDA must be auto, on or off, got {cuda!r}")
        # cmake and ninja that came by pip lie beside the Python, which may be run by its path.
        path = os.pathsep.join(
            [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]
        )
        # Steps done and the seconds so far, on each line that ninja prints.
        environment = {"NINJA_STATUS": "[%f/%t %es] ", **os.environ, "PATH": path}
        subprocess.run(
            [
                # fresh: an earlier cache names tools of a build environment that is gone
                "cmake", "--fresh", str(source), "-G", "Ninja",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={destination}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DLOGO_KERNELS_CUDA={cuda}",
            ],
            cwd=build,
            check=True,
            env=environment,
        )  # fmt: skip
        subprocess.run(["cmake", "--build", "."], cwd=build, check=True, env=environment)


setup(ext_modules=[CMakeExtension("logo_kernels._C")], cmdclass={"build_ext": CMakeBuild})
