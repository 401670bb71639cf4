"""Which kernels have passed on real hardware, as they are now.

    python benchmarks/ledger.py        prints every GPU kernel and its status

`results/<device>/ledger.json` is written by the hardware check and by nothing else. A kernel is
"verified" while its source, with everything that it is compiled from, is what passed there.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TRITON = Path("logo_kernels/backends/triton")
CUDA = Path("csrc/cuda")
INCLUDED_FROM = ("csrc", "csrc/include")  # beside the folder of the including file

# Kernels that bear another name than their operation. Backward of the cosine loss scales the
# gradient that forward has saved.
SERVES = {"scale": "cosine", "unit": "affinity"}


def operations(root: Path = ROOT) -> dict[str, tuple[str, ...]]:
    """Operation -> what the names of its kernels' files begin with, the same for both backends.

    They are those of ``python -m logo_kernels --verify``, read from its source: torch need not be
    there.
    """
    tree = ast.parse((root / "logo_kernels/verify/__init__.py").read_text())
    (names,) = (
        node.value.keys
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "OPERATIONS"
        and isinstance(node.value, ast.Dict)
    )
    found = [ast.literal_eval(name) for name in names if name is not None]
    return {
        operation: (operation, *(name for name, served in SERVES.items() if served == operation))
        for operation in found
    }


OPERATIONS = operations()

VERIFIED = "verified"
CHANGED = "changed since it passed"
NEVER = "never passed on hardware"


class Status(NamedTuple):
    """How a kernel stands; `device` is where it passed last, if anywhere."""

    kernel: str
    status: str
    device: str | None
    date: str | None


def kernels(root: Path = ROOT) -> dict[str, list[Path]]:
    """Each kernel's source file -> all files that it is compiled from, its own first.

    In Triton a kernel is a module that launches a function, its own or an imported one, as
    ``name_kernel[grid](...)``, and it is compiled from the backend's modules that it imports. In
    CUDA it is a .cu file that defines a __global__ function, and it is compiled from the project's
    headers that it includes.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted((root / TRITON).rglob("*.py")):
        if re.search(r"^\s*\w*_kernel\[", path.read_text(), re.MULTILINE):
            found[path.relative_to(root).as_posix()] = _with_imports(path, root)
    for path in sorted((root / CUDA).rglob("*.cu")):
        if re.search(r"\b__global__\b", _without_comments(path.read_text())):
            found[path.relative_to(root).as_posix()] = _with_includes(path, root)
    return found


def kernels_of(
    operation: str, backend: str, root: Path = ROOT, scaled_by: str | None = None
) -> list[str]:
    """The kernels behind a measured operation, the one that bears its name first; [] on the CPU.

    Backward of the cosine loss scales by the kernel of the backend `scaled_by`, which "auto"
    chooses whatever computed the loss.
    """
    found = [kernel for kernel in kernels(root) if operation_of(kernel) == operation]
    scaling = [kernel for kernel in found if Path(kernel).stem.startswith("scale")]
    mine = [kernel for kernel in found if backend_of(kernel) == backend and kernel not in scaling]
    mine.sort(key=lambda kernel: Path(kernel).stem != operation)
    return mine + [
        kernel for kernel in scaling if mine and backend_of(kernel) == (scaled_by or backend)
    ]


def operation_of(kernel: str) -> str:
    """The operation whose tests and sanitizer runs speak for a kernel, by the name of its file."""
    name = Path(kernel).stem
    found = [
        operation for operation, beginnings in OPERATIONS.items() if name.startswith(beginnings)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{kernel} is of {found or 'no operation'}: its file's name has to begin with that of "
            f"an operation of logo_kernels/verify, or stand in SERVES"
        )
    return found[0]


def backend_of(kernel: str) -> str:
    return "cuda" if kernel.startswith(CUDA.as_posix()) else "triton"


def source_hash(files: list[Path]) -> str:
    """Of a kernel: its own file first, the others by name."""
    return digest((path.name, path) for path in [files[0], *sorted(files[1:])])


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 over names and contents."""
    found = hashlib.sha256()
    for name, path in files:
        content = path.read_bytes()
        found.update(f"{name}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def ledgers(root: Path = ROOT) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((root / "benchmarks/results").glob("*/ledger.json")):
        yield path, json.loads(path.read_text())


def passed(entry: dict[str, Any]) -> bool:
    """Whether its tests passed, and its numbers without a tool, and no sanitizer found anything.

    A tool that was not there, ran out of time or lost track of a launch has found nothing, and the
    entry says so.
    """
    tests, verdicts = entry["tests"], entry["sanitizer"]
    return (
        tests["failed"] == 0
        and tests["passed"] > 0
        and verdicts.get("plain", "passed") == "passed"
        and "failed" not in verdicts.values()
    )


def status(root: Path = ROOT) -> list[Status]:
    """One line per kernel of the tree, the best news of any device first."""
    lines = []
    for kernel, files in kernels(root).items():
        line = Status(kernel, NEVER, None, None)
        for _, ledger in ledgers(root):
            entry = ledger["kernels"].get(kernel)
            if entry is None or not passed(entry):
                continue
            same = entry["sha256"] == source_hash(files)
            if same or line.status == NEVER:
                verdict = VERIFIED if same else CHANGED
                line = Status(kernel, verdict, ledger["device"], ledger["date"])
        lines.append(line)
    return lines


def is_verified(kernel: str, device: str, root: Path = ROOT) -> bool:
    """Whether the kernel as it is now passed on this very device."""
    files = kernels(root).get(kernel)
    return files is not None and any(
        ledger["device"] == device
        and kernel in ledger["kernels"]
        and passed(ledger["kernels"][kernel])
        and ledger["kernels"][kernel]["sha256"] == source_hash(files)
        for _, ledger in ledgers(root)
    )


def inconsistencies(root: Path = ROOT) -> list[str]:
    """What a ledger claims and cannot be so. A kernel that merely changed is none of it."""
    wrong = []
    for path, ledger in ledgers(root):
        where = path.relative_to(root).as_posix()
        for key in ("device", "driver", "clocks", "versions", "date", "kernels"):
            if not ledger.get(key):
                wrong.append(f"{where}: no {key}")
        for kernel, entry in ledger.get("kernels", {}).items():
            at = f"{where}: {kernel}"
            if not (root / kernel).is_file():
                wrong.append(f"{at}: there is no such file")
            if not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
                wrong.append(f"{at}: malformed sha256 {entry.get('sha256')!r}")
            if "tests" not in entry or "sanitizer" not in entry:
                wrong.append(f"{at}: it does not say which tests and sanitizer tools ran")
            elif entry.get("benchmarks") and not passed(entry):
                wrong.append(f"{at}: benchmark figures without passed tests and sanitizers")
    return wrong


def _with_imports(path: Path, root: Path) -> list[Path]:
    """The module and those of its backend that it imports, directly or through one another."""
    found = [path]
    for module in found:  # grows while it is walked
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            folder = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            # `from .a import b`: a, unless that is a folder with a module b.
            names = [folder.with_suffix(".py"), *(folder / f"{a.name}.py" for a in node.names)]
            for imported in names:
                inside = imported.is_file() and imported.is_relative_to(root / TRITON)
                if inside and imported not in found:
                    found.append(imported)
    return found


def _without_comments(source: str) -> str:
    """C++ without what stands in comments; good enough where no string holds their signs."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)


def _with_includes(path: Path, root: Path) -> list[Path]:
    """The file and the headers of the project that it includes, directly or through one another.

    Found as the compiler finds them; what is not there is none of the project's.
    """
    found = [path]
    for file in found:  # grows while it is walked
        source = _without_comments(file.read_text())
        for name in re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', source, re.MULTILINE):
            folders = [file.parent, *(root / folder for folder in INCLUDED_FROM)]
            header = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if header is not None and header.resolve() not in [known.resolve() for known in found]:
                found.append(header)
    return found


def table(lines: list[Status]) -> str:
    """The status of every kernel in Markdown."""
    rows = ["| kernel | status | device | date |", "|---|---|---|---|"]
    rows += [f"| `{s.kernel}` | {s.status} | {s.device or ''} | {s.date or ''} |" for s in lines]
    return "\n".join(rows)


def main() -> int:
    print(table(status()))
    wrong = inconsistencies()
    for line in wrong:
        print("inconsistent:", line)
    return 1 if wrong else 0
