"""The wheel, as a stranger gets it: built, installed in an empty environment, used from outside.

Built without CUDA, as on a machine without nvcc, and with it where there is one; neither needs a
GPU. The package that the other tests import was built with what is there, for all architectures of
the default; for the wheel, one will do, since each takes minutes.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from cuda_kernels.nvcc import DEFAULT_ARCHITECTURES, embedded
from logo_kernels.backends.extension import extension

ROOT = Path(__file__).parents[1]
ARCHITECTURE = "80-real"
SOURCES = ("csrc", "logo_kernels", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml",
           "setup.py")  # fmt: skip

USE = """
import sys, torch, logo_kernels
from logo_kernels import logo_loss
assert logo_kernels.available_backends()["cpu"] is None, logo_kernels.available_backends()
x = torch.randn(4, 2, 32, requires_grad=True)
y = torch.randn(4, 3, 32, requires_grad=True)
logo_loss(x, y, backend="cpu").backward()
assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0
from logo_kernels.backends.extension import extension
assert extension.cuda.architectures == sys.argv[1], extension.cuda.architectures
if not sys.argv[1]:
    assert "nvcc" in logo_kernels.available_backends()["cuda"]
print(logo_kernels.__file__)
"""


@pytest.fixture(scope="module", params=["off", "on"], ids=["without CUDA", "with CUDA"])
def cuda(request):
    """The build's switch."""
    if request.param == "on" and shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    return request.param


@pytest.fixture(scope="module")
def wheel(cuda, tmp_path_factory):
    pytest.importorskip("pybind11", reason="building without isolation needs pybind11")
    # A copy, since pip builds in the source tree: what lies in build/ there is another's.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    environment = {**os.environ, "CUDAARCHS": ARCHITECTURE, "LOGO_KERNELS_CUDA": cuda}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
         "-w", str(out), str(source)],
        check=True, env=environment,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def library(wheel, tmp_path):
    """The extension inside."""
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("logo_kernels/_C."))
    return zipfile.ZipFile(wheel).extract(name, tmp_path)


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "logo_kernels/py.typed" in names
    assert "logo_kernels/backends/triton/__init__.py" in names
    assert sum(name.startswith("logo_kernels/_C.") for name in names) == 1
    folders = {name.split("/")[0] for name in names}
    assert all(folder.startswith("logo_kernels") for folder in folders)  # no tests, no trainer
    assert any("LICENSE" in name for name in names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    needs = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needs if "extra ==" not in line] == ["Requires-Dist: torch>=2.8"]


def test_works_in_an_empty_environment(wheel, cuda, tmp_path):
    """Only this wheel in a new environment; torch and what it needs are lent from this one."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    torch_home = Path(torch.__file__).parents[1]
    for package in ("torch", "torchgen", "functorch", "typing_extensions.py", "sympy", "mpmath",
                    "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "numpy"):  # fmt: skip
        source = torch_home / package
        if source.exists():
            (site / package).symlink_to(source)
    for libraries in torch_home.glob("*.libs"):
        (site / libraries.name).symlink_to(libraries)
    architectures = ARCHITECTURE if cuda == "on" else ""

    def run(*arguments):
        outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, capture_output=True, text=True, env=outside,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", USE, architectures).strip().startswith(str(environment))
    told = architectures or "none (built without nvcc)"
    assert f"CUDA architectures {told}" in run("-m", "logo_kernels")


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_links_neither_libtorch_nor_cuda(library):
    """The CUDA runtime is inside, and takes the driver when it is first used: none is needed."""
    listed = subprocess.run(
        ["readelf", "-d", library], check=True, capture_output=True, text=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "NEEDED" in line]
    assert not [n for n in needed if "torch" in n or "c10" in n or "cuda" in n]
    assert any(n.startswith("libgomp.so") for n in needed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_carries_kernels_only_when_built_with_cuda(library, cuda):
    code, ptx = embedded(library)
    assert code == ({"sm_80"} if cuda == "on" else set())
    assert not ptx


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_default_serves_what_is_newer():
    """Of the package that is installed: code for three architectures, and PTX of the last one."""
    if extension is None or extension.cuda.architectures != DEFAULT_ARCHITECTURES:
        pytest.skip("the installed package was not built for the default architectures")
    code, ptx = embedded(Path(extension.__file__))
    assert code == {"sm_80", "sm_90a", "sm_100"}
    assert ptx == {"sm_100"}
