"""Which kernels have passed on real hardware, as they are now.

    python benchmarks/ledger.py        prints every GPU kernel and its status

`results/<device>/ledger.json` is written by hardware_check.py and by nothing else. A kernel is
"verified" while its source, with everything that it is compiled from, is what passed there.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TRITON = Path("logo_kernels/backends/triton")
CUDA = Path("csrc/cuda")
INCLUDED_FROM = ("csrc", "csrc/include")  # beside the folder of the including file

# Where the operations are: the suffix of the backend's folder is added. Backward of InfoNCE, in
# CUDA, is in a file beside it.
FOLDERS = {"triton": (TRITON, ".py"), "cuda": (CUDA, ".cu")}
FILES = {
    "cosine": "cosine",
    "info_nce": "info_nce",
    "pair_hidden": "pair_hidden",
    "pair_output": "pair_output",
    "scale": "scale",
    "similarity": "similarity",
    "similarity_backward": "similarity",
}

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

    In Triton a kernel is a module that launches a jitted function of its own, and it is compiled
    from the modules beside it that it imports. In CUDA it is a .cu file that defines a __global__
    function, and it is compiled from the project's headers that it includes.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted((root / TRITON).glob("*.py")):
        if _launches_own_kernel(ast.parse(path.read_text())):
            found[path.relative_to(root).as_posix()] = _with_imports(path)
    for path in sorted((root / CUDA).glob("*.cu")):
        if re.search(r"\b__global__\b", _without_comments(path.read_text())):
            found[path.relative_to(root).as_posix()] = _with_includes(path, root)
    return found


def kernels_of(
    operation: str, backend: str, root: Path = ROOT, scaled_by: str | None = None
) -> list[str]:
    """The kernels behind a measured operation, the one that bears its name first; [] on the CPU.

    Backward of the cosine loss scales the saved gradient by a kernel of its own, if there is one:
    that of the backend `scaled_by`, which "auto" chooses whatever computed the loss.
    """
    if backend not in FOLDERS:
        return []
    folder, suffix = FOLDERS[backend]
    if operation == "affinity":
        return [(folder / f"{part}{suffix}").as_posix() for part in ("pair_hidden", "pair_output")]
    kernels = [(folder / f"{FILES[operation]}{suffix}").as_posix()]
    backward = folder / f"{FILES[operation]}_backward{suffix}"
    if (root / backward).is_file():
        kernels.append(backward.as_posix())
    if operation == "cosine" and (scaled_by or backend) in FOLDERS:
        folder, suffix = FOLDERS[scaled_by or backend]
        scale = (folder / f"{FILES['scale']}{suffix}").as_posix()
        kernels += [scale] if (root / scale).is_file() else []
    return kernels


def backend_of(kernel: str) -> str:
    return "cuda" if kernel.startswith(CUDA.as_posix()) else "triton"


def source_hash(files: list[Path]) -> str:
    """sha256 over names and contents; the kernel's own file first, the others by name."""
    digest = hashlib.sha256()
    for path in [files[0], *sorted(files[1:])]:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def ledgers(root: Path = ROOT) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((root / "benchmarks/results").glob("*/ledger.json")):
        yield path, json.loads(path.read_text())


def passed(entry: dict[str, Any]) -> bool:
    """Whether this entry's tests passed, and every sanitizer tool that was there to run."""
    tests = entry["tests"]
    return (
        tests["failed"] == 0
        and tests["passed"] > 0
        and all(verdict != "failed" for verdict in entry["sanitizer"].values())
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


def _launches_own_kernel(module: ast.Module) -> bool:
    """Whether the module holds ``kernel[grid](...)`` for a jitted function that it defines."""
    jitted = {
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in jitted
        for node in ast.walk(module)
    )


def _with_imports(path: Path) -> list[Path]:
    """The module and those of its folder that it imports, directly or through one another."""
    found = [path]
    for module in found:  # grows while it is walked
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level != 1:
                continue
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                imported = path.with_name(f"{name}.py")
                if imported.is_file() and imported not in found:
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


if __name__ == "__main__":
    print(table(status()))
    for line in inconsistencies():
        print("inconsistent:", line)
    raise SystemExit(1 if inconsistencies() else 0)
