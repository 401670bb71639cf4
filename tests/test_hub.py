"""What python/hub.py makes: the layout of a kernel of the Hub, loaded beside the package."""

import ast
import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# As Hugging Face's kernels imports a variant: by path, under the id of its metadata.
LOAD = """
import importlib.util, json, sys
from pathlib import Path

def load(folder):
    name = json.loads((Path(folder) / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

import torch
"""

USE = """
import logo_kernels
copies = [load(folder) for folder in sys.argv[1:]]
assert len({module.__name__ for module in (logo_kernels, *copies)}) == 3

def gradient(module, backend, options):
    torch.manual_seed(0)
    x, y = (torch.randn(4, crops, 16, requires_grad=True) for crops in (2, 3))
    module.logo_loss(x, y, backend=backend, **options).backward()
    return x.grad

for options in ({}, {"similarity": "info_nce", "negatives": "batch"}):
    for backend in ("reference", "triton", "auto"):
        expected = gradient(logo_kernels, backend, options)
        for module in copies:
            torch.testing.assert_close(gradient(module, backend, options), expected)

for module in (logo_kernels, *copies):
    operators = sys.modules[module.__name__ + ".operators"]
    namespace = operators.OPERATORS["cosine"].registered.name().partition("::")[0]
    assert namespace == module.__name__, namespace
    assert all(name.startswith(namespace + "::") for name in
               (one.registered.name() for one in operators.OPERATORS.values()))
for module in copies:
    assert "Hub" in module.available_backends()["cpu"]
    compiled = torch.compile(module.logo_loss, backend="eager", fullgraph=True)
    compiled(torch.randn(4, 2, 16))
    affinity = module.LocalAffinity(16)
    affinity.objective(torch.randn(4, 3, 16)).backward()
    assert affinity[0].weight.grad.abs().sum() > 0
"""

ALONE = """
(module,) = (load(folder) for folder in sys.argv[1:])
x = torch.randn(4, 2, 16, requires_grad=True)
module.logo_loss(x).backward()
assert x.grad.abs().sum() > 0
assert not [name for name in sys.modules if name.split(".")[0] == "logo_kernels"]

spec = importlib.util.spec_from_file_location("old", sys.argv[1] + "/logo_kernels/__init__.py")
old = importlib.util.module_from_spec(spec)
spec.loader.exec_module(old)
assert old.logo_loss is module.logo_loss and old.__all__ == module.__all__
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("hub") / "made"
    subprocess.run([sys.executable, ROOT / "python/hub.py", destination], check=True)
    return destination


def variants(tree: Path) -> list[Path]:
    return [tree / "build" / name for name in ("torch-cuda", "torch-cpu")]


def run(code: str, *arguments: Path, cwd: Path) -> None:
    """Without the checkout on the path, but with what the tests have installed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", LOAD + code, *map(str, arguments)]
    subprocess.run(command, check=True, cwd=cwd, env=environment)


def test_copies_beside_the_package(tree, tmp_path):
    run(USE, *variants(tree), cwd=tmp_path)


def test_a_copy_alone_and_by_its_older_path(tree, tmp_path):
    run(ALONE, variants(tree)[0], cwd=tmp_path)


def test_the_library_loads_it(tree, tmp_path):
    try:
        importlib.metadata.version("kernels")  # the import would find kernels.py of the tests
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("kernels is not installed")
    code = """
from kernels import get_local_kernel
module = get_local_kernel(Path(sys.argv[1]))
x = torch.randn(4, 2, 16, requires_grad=True)
module.logo_loss(x).backward()
assert x.grad.abs().sum() > 0 and module.__name__.startswith("_logo_kernels_")
"""
    run(code, tree, cwd=tmp_path)


def test_metadata(tree):
    for variant in variants(tree):
        facts = json.loads((variant / "metadata.json").read_text())
        backend = variant.name.removeprefix("torch-")
        assert facts["id"].isidentifier()
        assert facts["id"].startswith(f"_logo_kernels_{backend}_")
        assert facts["backend"] == {"type": backend}
        assert facts["name"] == "logo-kernels"
        files = {path for path in variant.rglob("*") if path.is_file()}
        assert facts["digest"]["files"] == {
            path.relative_to(variant).as_posix(): base64.b64encode(
                hashlib.sha256(path.read_bytes()).digest()
            ).decode()
            for path in files
            if path.name != "metadata.json" and "__pycache__" not in path.parts
        }


def test_sources_import_relatively_and_parse_as_python39(tree):
    files = list((tree / "torch-ext").rglob("*.py"))
    assert len(files) > 40
    for path in files:
        code = ast.parse(path.read_text(), feature_version=(3, 9))
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not node.module.startswith("logo_kernels"), path
            if isinstance(node, ast.Import):
                assert not any(one.name.startswith("logo_kernels") for one in node.names), path
            if isinstance(node, ast.Call):
                assert not {"strict"} & {one.arg for one in node.keywords}, path
        assert not evaluated_unions(code), path


def evaluated_unions(code: ast.Module) -> list[str]:
    """`X | None` outside annotations of functions."""
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for one in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs):
                one.annotation = None
            for one in (node.args.vararg, node.args.kwarg):
                if one is not None:
                    one.annotation = None
    return [
        ast.unparse(node)
        for node in ast.walk(code)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.BitOr)
        and any(
            isinstance(one, ast.Constant) and one.value is None for one in (node.left, node.right)
        )
    ]
