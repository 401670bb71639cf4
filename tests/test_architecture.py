"""What the architecture promises, counted: rooms, floors, circles, and copies of an argument list.

A room is a module of the package, or of its backends, or a folder below these. A floor is how many
rooms lie below: the longest chain of imports that are made when the package is imported.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "logo_kernels"
FOLDERS = ("affinity", "verify", "backends/reference", "backends/triton")

# Of an argument list of the cosine loss; this many of them in one place are a copy of it.
COSINE = {
    "global_crops", "local_crops", "targets", "features", "x", "y", "t", "r", "repulsion_weight",
    "weight", "repulsion_weight_tensor", "tensor", "repulsion", "pair_reduction", "reduction",
    "grad_global", "grad_local", "grad_features", "to_x", "to_y", "to_r",
}  # fmt: skip
COPY = 6


def room_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for folder in FOLDERS:
        if name.startswith(folder + "/"):
            return folder
    return name.removesuffix("/__init__") or "__init__"


def imports_of(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """Those that are made at import: not for type checkers, not within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports_of(node)


@functools.cache
def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it imports from."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        below = found.setdefault(room, set())
        for node in imports_of(ast.parse(path.read_text())):
            if node.level == 0:
                continue
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                for candidate in (base / name.name, base):
                    for target in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                        if target.exists():
                            below.add(room_of(target))
                            break
                    else:
                        continue
                    break
        below.discard(room)
    return found


def floor_of(room: str, above: tuple[str, ...] = ()) -> int:
    assert room not in above, f"a circle of imports: {' -> '.join((*above, room))}"
    return 1 + max((floor_of(below, (*above, room)) for below in rooms()[room]), default=0)


def test_rooms_and_floors():
    assert len(rooms()) <= 26, sorted(rooms())
    assert max(map(floor_of, rooms())) <= 9


def names_in(node: ast.AST) -> list[str]:
    """Of what a list of arguments consists of: parameters, fields, arguments, elements."""
    if isinstance(node, ast.FunctionDef):
        return [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
    if isinstance(node, ast.ClassDef):
        return [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
    given: list[ast.expr] = []
    if isinstance(node, ast.Call):
        given = [*node.args, *(one.value for one in node.keywords)]
    elif isinstance(node, ast.Tuple):
        given = node.elts
    return [one.id for one in given if isinstance(one, ast.Name)]


def copies_in_python() -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if len(COSINE.intersection(names_in(node))) >= COPY
    ]


def copies_in_cpp() -> list[str]:
    """Lists within one pair of parentheses, or fields of one struct or macro."""
    found = []
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        for block in re.finditer(r"\([^()]*\)|#define[^\n]*(\\\n[^\n]*)+", path.read_text()):
            words = set(re.findall(r"\w+", block.group()))
            if len(COSINE.intersection(words)) >= COPY:
                found.append(f"{path.relative_to(ROOT)}: {block.group()[:40]}")
    return found


def test_copies_of_the_cosine_argument_list():
    copies = copies_in_python() + copies_in_cpp()
    assert 3 <= len(copies) <= 10, copies  # none at all would be a count that misses them


def test_one_list_of_the_launchers():
    """A launcher's name stands in operations.h, and where it is defined."""
    text = {path: path.read_text() for path in (ROOT / "csrc").rglob("*.*")}
    lists = [path.name for path, code in text.items() if code.count("similarity_backward") > 0]
    assert "operations.h" in lists
    bindings = [name for name in lists if name.startswith("bindings") or "dispatch" in name]
    assert not bindings, bindings
