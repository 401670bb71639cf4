"""The wheel, as a stranger gets it: built, installed in an empty environment, used from outside.

Built without CUDA, as on a machine without nvcc; the package that the other tests import was built
with what is there.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

USE = """
import torch, logo_kernels
from logo_kernels import logo_loss
assert logo_kernels.available_backends()["cpu"] is None, logo_kernels.available_backends()
x = torch.randn(4, 2, 32, requires_grad=True)
y = torch.randn(4, 3, 32, requires_grad=True)
logo_loss(x, y, backend="cpu").backward()
assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0
from logo_kernels.backends.extension import extension
assert extension.cuda.architectures == ""  # and works all the same
assert "nvcc" in logo_kernels.available_backends()["cuda"]
print(logo_kernels.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("pybind11", reason="building without isolation needs pybind11")
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
         "-w", str(out), str(ROOT)],
        check=True, env={**os.environ, "LOGO_KERNELS_CUDA": "off"},
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


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


def test_works_in_an_empty_environment(wheel, tmp_path):
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
    done = subprocess.run(
        [python, "-c", USE], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.stdout.strip().startswith(str(environment))


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_links_no_libtorch(wheel, tmp_path):
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("logo_kernels/_C."))
    library = zipfile.ZipFile(wheel).extract(name, tmp_path)
    listed = subprocess.run(
        ["readelf", "-d", library], check=True, capture_output=True, text=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "NEEDED" in line]
    assert not [n for n in needed if "torch" in n or "c10" in n or "cuda" in n]
    assert any(n.startswith("libgomp.so") for n in needed)
