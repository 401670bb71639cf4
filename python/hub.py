"""Makes of the package what Hugging Face's kernels library loads: python python/hub.py DESTINATION

Triton's kernels and the reference alone, without the compiled extension ("torch-noarch"):

    build.toml, flake.nix    for kernel-builder, which can build the rest anew and upload it
    torch-ext/logo_kernels/  the sources that it wants
    build/torch-cuda/        the same, ready to load by kernels.get_local_kernel(DESTINATION)
    build/torch-cpu/         likewise

Several versions of a kernel may live in one process beside the installed package. So each copy has
a namespace of operators of its own, named by a hash of its sources, and imports itself relatively.
The library still serves Python 3.9: unions that are evaluated and zip(strict=) are written for it.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "logo_kernels"
NAME = "logo_kernels"
BACKENDS = ("cuda", "cpu")  # the latter has the reference, as every machine without a GPU

# Commands, not parts of a library; they know the package by its name.
LEFT_OUT = ("__main__.py", "verify/")

BUILD = """\
[general]
name = "logo-kernels"
version = 0
edition = 5
license = "Apache-2.0"
backends = ["cuda", "cpu"]

[torch-noarch]
"""

FLAKE = """\
{
  description = "Flake for the logo_kernels kernel";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""

# By the interface of the file that kernel-builder writes there.
OPS = '''\
import torch

_OPS_NAME = "{id}"
ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    """The name of an operator of this copy, qualified."""
    return f"{{_OPS_NAME}}::{{op_name}}"
'''

NAMED = 'NAMESPACE = "logo_kernels"'
RENAMED = """\
from ._ops import add_op_namespace_prefix

NAMESPACE = add_op_namespace_prefix("")[:-2]\
"""

EXTENSION = '''\
"""The compiled extension, which this copy of the package lacks."""

extension = None
reason = "a kernel of the Hub has none; install the package logo_kernels for the C++ extension"
'''

# For readers that know packages only as build/<variant>/<name>: the same module, by another path.
COMPATIBLE = """\
import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "__init__.py"
_name = "{id}"
if _name not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_name, _path)
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
globals().update({{name: getattr(sys.modules[_name], name) for name in sys.modules[_name].__all__}})
__all__ = sys.modules[_name].__all__
"""


def sources() -> dict[str, str]:
    """Path within the package -> its text, as a copy has it; without `_ops.py`, which names it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(LEFT_OUT):
            found[name] = for_python39(path.read_text())
    found["backends/extension.py"] = EXTENSION
    named = found["operators.py"]
    assert named.count(NAMED) == 1
    found["operators.py"] = named.replace(NAMED, RENAMED)
    return found


def for_python39(text: str) -> str:
    """Unions of types, where they are or may be evaluated, as Union; zip without strict."""
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = text.encode()
    edits: list[tuple[int, int, str]] = []

    def place(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        return begin, starts[node.end_lineno - 1] + node.end_col_offset

    unions = list(outermost_unions(tree))
    for node in unions:
        edits.append((*place(node), as_union(node)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            for keyword in node.keywords:
                assert keyword.arg == "strict"
                _, before = place(node.args[-1])
                edits.append((before, place(keyword.value)[1], ""))
    for begin, end, new in sorted(edits, reverse=True):
        raw = raw[:begin] + new.encode() + raw[end:]
    text = raw.decode()
    if unions:
        after = "from __future__ import annotations\n"
        assert text.count(after) == 1
        text = text.replace(after, after + "\nfrom typing import Union as _Union\n")
    return text


def outermost_unions(node: ast.AST) -> Iterator[ast.BinOp]:
    """But for annotations of functions, which nothing evaluates; those of records are."""
    skipped: list[ast.AST | None] = []
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        skipped = [node.args, node.returns]
    for child in ast.iter_child_nodes(node):
        if child in skipped:
            continue
        if isinstance(child, ast.BinOp) and is_union(child):
            yield child
        else:
            yield from outermost_unions(child)


def is_union(node: ast.BinOp) -> bool:
    """Of types: kernels join masks by the same sign, but none of those is None or a Tensor."""
    return isinstance(node.op, ast.BitOr) and any(
        (isinstance(part, ast.Constant) and part.value is None)
        or (isinstance(part, ast.Name) and part.id in ("Tensor", "str", "int", "float"))
        for part in parts_of(node)
    )


def parts_of(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*parts_of(node.left), *parts_of(node.right)]
    return [node]


class AsUnion(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        if not is_union(node):
            return node
        parts = [self.visit(part) for part in parts_of(node)]
        return ast.Subscript(ast.Name("_Union"), ast.Tuple(parts))


def as_union(node: ast.BinOp) -> str:
    return ast.unparse(ast.fix_missing_locations(AsUnion().visit(node)))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def metadata(identity: str, backend: str, files: dict[str, str]) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    facts = {
        "id": identity,
        "name": NAME.replace("_", "-"),
        "version": 0,  # by convention: not yet for production
        "license": "Apache-2.0",
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {name: digest(files[name]) for name in sorted(files)},
        },
    }
    return json.dumps(facts, indent=2) + "\n"


def make(destination: Path) -> list[Path]:
    """Writes the tree; returns the folders that can be loaded."""
    made = sources()
    unique = hashlib.sha1(json.dumps(made, sort_keys=True).encode()).hexdigest()[:7]
    license_ = (ROOT / "LICENSE").read_text()
    write(destination, {"build.toml": BUILD, "flake.nix": FLAKE, "LICENSE": license_})
    write(destination / "torch-ext" / NAME, made)
    variants = []
    for backend in BACKENDS:
        identity = f"_{NAME}_{backend}_{unique}"
        files = {
            **made,
            "_ops.py": OPS.format(id=identity),
            f"{NAME}/__init__.py": COMPATIBLE.format(id=identity),
        }
        variant = destination / "build" / f"torch-{backend}"
        write(variant, {**files, "metadata.json": metadata(identity, backend, files)})
        variants.append(variant)
    return variants


def main() -> None:
    parser = argparse.ArgumentParser("python python/hub.py", description=__doc__.split("\n")[0])
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    destination = parser.parse_args().destination
    if destination.exists():
        parser.error(f"{destination} exists already; name a folder that does not")
    for variant in make(destination):
        print(variant)


if __name__ == "__main__":
    main()
