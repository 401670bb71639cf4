"""What nvcc makes of the CUDA kernels, and how many of their blocks a multiprocessor holds.

    python benchmarks/static_report.py           prints the tables
    python benchmarks/static_report.py --write   files them in benchmarks/results/static

Of the extension as it is installed: its machine code tells registers, local and shared memory, and
the instructions; threads, stages and shared memory at launch are the launcher's plan. The rest is
computed from data sheets. It needs cuobjdump and nvdisasm, which Triton's wheel has too; no GPU,
and no compiler. Nothing here is a measured speed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import tables

from . import ledger

RESULTS = ledger.ROOT / "benchmarks/results/static"

# Assumed, not measured: from a load's issue to its data, on a device whose DRAM is busy.
LATENCY = 800e-9

DEFAULT_ARCHITECTURES = "80-real, 90a-real, 100"  # of CMakeLists.txt

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes
TENSOR_CORE = {"HMMA", "HGMMA", "QMMA", "OMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA"}


@dataclass(frozen=True)
class Device:
    """Of its data sheet."""

    name: str
    bandwidth: float  # bytes per second, of DRAM, reads and writes together
    multiprocessors: int

    def bytes_in_flight(self) -> float:
        """What a multiprocessor has to have under way, by Little's law, to keep DRAM busy."""
        return self.bandwidth / self.multiprocessors * LATENCY


@dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor: CUDA Programming Guide, compute capabilities."""

    name: str
    devices: tuple[Device, ...]
    shared_per_block: int  # that a block may ask for
    shared: int
    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    partitions: int = 4  # a warp's registers come from one of them

    register_unit = 256  # registers of a warp come in such parcels
    reserved = 1024  # shared memory that the system takes of each block
    shared_unit = 128


ARCHITECTURES = (
    Architecture("sm_80", (Device("A100 80GB SXM", 2.04e12, 108),), 163 << 10, 164 << 10),
    Architecture(
        "sm_90a",
        (Device("H100 SXM", 3.35e12, 132), Device("H200", 4.8e12, 132)),
        227 << 10,
        228 << 10,
    ),
    Architecture("sm_100", (Device("B200", 8e12, 148),), 227 << 10, 228 << 10),
)


@dataclass(frozen=True)
class Problem:
    """Sizes of one call: rows G + L of a loss (0 L: none), or V rows of a similarity."""

    kernel: str
    rows: tuple[int, int]
    dim: int
    simsiam: bool = False  # targets and features beside the crops

    def __str__(self) -> str:
        crops = f"{self.rows[0]}+{self.rows[1]}"
        return f"{self.kernel} {crops} D={self.dim}" + " targets, features" * self.simsiam

    def rows_read(self) -> int:
        return sum(self.rows) * (2 if self.simsiam else 1)


PROBLEMS = (
    Problem("cosine", (2, 8), 2048),
    Problem("cosine", (2, 8), 256),
    Problem("cosine", (2, 2), 2048),
    Problem("cosine", (2, 62), 256),
    Problem("cosine", (2, 0), 65536),
    Problem("cosine", (2, 8), 2048, simsiam=True),
    Problem("similarity", (10, 0), 2048),
    Problem("similarity_backward", (10, 0), 2048),
)


def identity(symbol: str) -> tuple[str, str]:
    """Kernel and dtype of a mangled instantiation: ("cosine", "bf16")."""
    match = re.search(r"\d([a-z][a-z_]*)_kernelI(?:(f)|N\w*?\d(bf16|f16)E)((?:L[ib]\dE)*)E", symbol)
    if match is None and (untyped := re.search(r"\d([a-z][a-z_]*)_kernelE", symbol)):
        return untyped[1], "any"  # it tells dtypes apart as it runs
    if match is None:
        raise ValueError(f"no kernel of this project by its name: {symbol}")
    constants = re.findall(r"\d", match[4])
    name = f"{match[1]}<{', '.join(constants)}>" if constants else match[1]
    return name, {"f": "fp32", "f16": "fp16", "bf16": "bf16"}[match[2] or match[3]]


def parse_usage(listed: str, architecture: str) -> dict[tuple[str, str], dict[str, int]]:
    """Of `cuobjdump -res-usage`; stack and local memory in bytes of a thread."""
    found = {}
    for symbol, facts in re.findall(r"^ *Function (\w+):\n(.*)$", listed, re.MULTILINE):
        used = {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", facts)}
        if not used.get("REG"):
            raise ValueError(f"cuobjdump does not say how many registers {symbol} has: {facts!r}")
        shared = used["SHARED"]
        if shared and architecture != "sm_80":  # it counts what the system takes of a block
            shared -= Architecture.reserved
        found[identity(symbol)] = {
            "registers": used["REG"],
            "static_shared": shared,
            "stack": used["STACK"],
            "local": used["LOCAL"],
        }
    return found


def parse_sass(disassembly: str) -> dict[tuple[str, str], dict[str, int]]:
    """Of `nvdisasm -c`: the instructions that say how a kernel computes and moves data."""
    found = {}
    for symbol, opcodes in _functions(disassembly):
        by_name: Counter[str] = Counter()
        for opcode, count in opcodes.items():
            by_name[opcode.split(".")[0]] += count
        found[identity(symbol)] = {
            "tensor_core": sum(by_name[name] for name in TENSOR_CORE),
            "local_memory": by_name["LDL"] + by_name["STL"],
            "stores_128": sum(
                count
                for opcode, count in opcodes.items()
                if opcode.split(".")[0] == "STG" and "128" in opcode.split(".")
            ),
            "copies_16": by_name["LDGSTS"],
            "copies_bulk": by_name["UBLKCP"],
        }
    return found


def _functions(disassembly: str) -> Iterator[tuple[str, Counter[str]]]:
    """Symbol and opcodes, with their modifiers, of each section of code."""
    for part in re.split(r"^\.text\.", disassembly, flags=re.MULTILINE)[1:]:
        symbol, _, code = part.partition(":")
        opcode = r"/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
        yield symbol, Counter(re.findall(opcode, code))


def blocks_by(
    architecture: Architecture, threads: int, registers: int, shared_bytes: int
) -> dict[str, int]:
    """How many blocks each resource allows; the least of them is what fits.

    The toolkit's cuda_occupancy.h reckons the same way.
    """
    warps = -(-threads // 32)
    per_warp = _round_up(registers * 32, architecture.register_unit)
    warps_of_registers = (
        architecture.registers // architecture.partitions // per_warp * architecture.partitions
    )
    shared = _round_up(shared_bytes + architecture.reserved, architecture.shared_unit)
    fits = shared_bytes <= architecture.shared_per_block
    return {
        "registers": warps_of_registers // warps,
        "shared memory": architecture.shared // shared * fits,
        "threads": architecture.warps // warps,
        "blocks": architecture.blocks,
    }


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def bytes_in_flight(
    blocks: int, stages: int, rows: int, columns: int, element_bytes: int
) -> tuple[int, int]:
    """Reads that a multiprocessor has under way: while each block works on a stage, and at best.

    Blocks of one stage work while others read: then one of them works.
    """
    stage = rows * columns * element_bytes
    reading = blocks - 1 if stages == 1 else blocks * (stages - 1)
    return reading * stage, blocks * stages * stage


def find_tool(name: str) -> str | None:
    """On the PATH, or in Triton's wheel."""
    triton = find_spec("triton")
    folders = [] if triton is None else triton.submodule_search_locations or []
    bundled = (Path(folder) / "backends/nvidia/bin" / name for folder in folders)
    return shutil.which(name) or next((str(path) for path in bundled if path.is_file()), None)


def kernels_of(library: Path) -> tuple[str, list[dict[str, Any]]]:
    """The compiler's version, and one row for each kernel and architecture in its machine code."""
    with tempfile.TemporaryDirectory() as folder:
        _run("cuobjdump", "-xelf", "all", library, cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(_kernels_of_cubin, cubins))
        versions = {
            version.decode()
            for cubin in cubins
            for version in re.findall(rb"release [\d.]+, V([\d.]+)", cubin.read_bytes())
        }
    if len(versions) != 1:
        raise SystemExit(f"{library} was compiled by one nvcc, says itself by {sorted(versions)}")
    names = [architecture.name for architecture in ARCHITECTURES]
    rows = [row for part in parts for row in part]
    rows.sort(key=lambda k: (k["kernel"], names.index(k["architecture"]), k["dtype"]))
    return versions.pop(), rows


def _kernels_of_cubin(cubin: Path) -> list[dict[str, Any]]:
    architecture = cubin.name.split(".")[-2]
    used = parse_usage(_run("cuobjdump", "-res-usage", cubin), architecture)
    counted = parse_sass(_run("nvdisasm", "-c", cubin)) if used else {}
    if used.keys() != counted.keys():
        raise RuntimeError(f"cuobjdump names {sorted(used)}, the disassembly {sorted(counted)}")
    return [
        {"kernel": kernel, "dtype": dtype, "architecture": architecture}
        | used[kernel, dtype]
        | counted[kernel, dtype]
        for kernel, dtype in used
    ]


def _run(name: str, *arguments: str | Path, cwd: str | None = None) -> str:
    tool = find_tool(name)
    if tool is None:
        raise SystemExit(f"{name} is neither on the PATH nor in a Triton wheel")
    command = [tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def lay_out(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every problem on every architecture."""
    from harness.package import extension

    registers = {(k["kernel"], k["dtype"], k["architecture"]): k["registers"] for k in kernels}
    rows = []
    for case in PROBLEMS:
        for arch in ARCHITECTURES:
            for dtype, size in DTYPES.items():
                count = case.rows_read()
                plan = extension.cuda.plan(count, case.dim, size, arch.shared_per_block)
                used = registers[case.kernel, dtype, arch.name]
                rows.append(_row(case, arch, dtype, plan, used))
    return rows


def _row(
    case: Problem, arch: Architecture, dtype: str, plan: dict[str, int], registers: int
) -> dict[str, Any]:
    allowed = blocks_by(arch, plan["threads"], registers, plan["shared_bytes"])
    blocks = min(allowed.values())
    columns = min(plan["chunk"], case.dim)
    working, best = bytes_in_flight(
        blocks, plan["stages"], case.rows_read(), columns, DTYPES[dtype]
    )
    return {
        "problem": str(case),
        "dtype": dtype,
        "architecture": arch.name,
        "rows": case.rows_read(),
        **{key: plan[key] for key in ("threads", "stages", "chunks", "stage_bytes")},
        "shared_bytes": plan["shared_bytes"],
        "registers": registers,
        "blocks": blocks,
        "limited_by": [name for name, count in allowed.items() if count == blocks],
        "bytes_in_flight_working": working,
        "bytes_in_flight_best": best,
        "bytes_in_flight_needed": {d.name: round(d.bytes_in_flight()) for d in arch.devices},
    }


def report() -> dict[str, Any]:
    from harness.package import extension, reason

    if extension is None:
        raise SystemExit(reason)
    if extension.cuda.architectures != DEFAULT_ARCHITECTURES:
        built = extension.cuda.architectures or "none"
        raise SystemExit(
            f"the package was built for CUDA architectures {built}, and the report is of "
            f"{DEFAULT_ARCHITECTURES}: build it with nvcc on the PATH and without CUDAARCHS"
        )
    version, kernels = kernels_of(Path(extension.__file__))
    return {"nvcc": version, "kernels": kernels, "problems": lay_out(kernels)}


def markdown(facts: dict[str, Any]) -> str:
    return (
        "\n\n".join(
            [
                "# What nvcc makes of the CUDA kernels",
                f"nvcc {facts['nvcc']}, as the package is built. Compiled, not run: **nothing here "
                "is a measured speed.** From `python benchmarks/static_report.py --write`.",
                "## Registers and instructions",
                "Stack and local memory in bytes of a thread; instructions, those on local memory "
                "among them, as they stand in the code, not as often as they are executed.",
                _kernels_table(facts["kernels"]),
                *(
                    part
                    for architecture in ARCHITECTURES
                    for part in _problems_section(architecture, facts["problems"])
                ),
            ]
        )
        + "\n"
    )


def _kernels_table(kernels: list[dict[str, Any]]) -> str:
    header = {
        "registers": "registers", "stack": "stack", "local": "local memory",
        "local_memory": "on it", "tensor_core": "tensor cores", "stores_128": "128-bit stores",
        "copies_16": "cp.async", "copies_bulk": "bulk copies",
    }  # fmt: skip
    body = [
        [f"{k['kernel']} {k['dtype']}", k["architecture"], *(str(k[key]) for key in header)]
        for k in kernels
    ]
    return tables.markdown(["kernel", "for", *header.values()], body)


def _problems_section(architecture: Architecture, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"## {architecture.name}: blocks on a multiprocessor, KiB of reads in flight on it"
    needed = ", ".join(
        f"{d.name} ({d.bandwidth / 1e12:g} TB/s, {d.multiprocessors} multiprocessors) "
        f"{_kib(d.bytes_in_flight())} KiB"
        for d in architecture.devices
    )
    yield (
        "Computed, not measured. Little's law asks for bandwidth × latency, at the data sheet's "
        f"bandwidth and an **assumed** latency of {LATENCY * 1e9:.0f} ns of loaded DRAM: {needed}. "
        "That is for reads alone at full bandwidth; where as many bytes are written as read, half "
        "does. In flight: while each block works on one of its stages (of blocks with one stage: "
        "while one block works), and with all stages under way; of an "
        "architecture's devices the hungriest is compared."
    )
    body = []
    for row in rows:
        if row["architecture"] != architecture.name:
            continue
        needed_bytes = max(row["bytes_in_flight_needed"].values())
        stages = f"{row['stages']} × {_kib(row['stage_bytes'])}"
        body.append(
            [
                row["problem"], row["dtype"], str(row["threads"]), str(row["registers"]),
                stages + ("" if row["chunks"] == 1 else f" ({row['chunks']} an image)"),
                _kib(row["shared_bytes"]), str(row["blocks"]), ", ".join(row["limited_by"]),
                _kib(row["bytes_in_flight_working"]), _kib(row["bytes_in_flight_best"]),
                f"{row['bytes_in_flight_working'] / needed_bytes:.1f}×",
            ]
        )  # fmt: skip
    yield tables.markdown(
        ["problem", "dtype", "threads", "registers", "stages, KiB", "shared, KiB", "blocks",
         "limited by", "in flight, working", "at best", "working / needed"],
        body,
    )  # fmt: skip


def _kib(count: float) -> str:
    return f"{count / 1024:.1f}"


def written(facts: dict[str, Any]) -> dict[str, str]:
    """The files that hold the report, by name."""
    return {"ptxas.md": markdown(facts), "ptxas.json": json.dumps(facts, indent=1) + "\n"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="file it in benchmarks/results/static")
    options = parser.parse_args()
    facts = report()
    print(markdown(facts))
    if options.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for name, text in written(facts).items():
            (RESULTS / name).write_text(text)
    return 0
