"""The package under one release of torch after another, each in an environment of its own.

    python tests/torches.py                          the newest patch of every minor from 2.8 on
    python tests/torches.py 2.8.0 2.9.1              these
    python tests/torches.py 2.13.0 --beside triton==3.4.0 numpy==1.26.4
    python tests/torches.py --python python3.13 --index-url https://download.pytorch.org/whl/cpu

Of each: import, `python -m logo_kernels --verify cpu`, the tests of losses, autograd and compile.
One wheel serves them all. What passed and what failed is written into the table of
docs/backends.md. A release of which pip would bring a build for CUDA, gigabytes of it, is left out
and named, unless --cuda-builds is given. Environments are deleted after use.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/backends.md"
BEGIN, END = "<!-- torches:begin -->", "<!-- torches:end -->"
HEADER = [
    "| torch | Python | Triton | NumPy | `--verify cpu` | losses, autograd, compile |",
    "|---|---|---|---|---|---|",
]
OLDEST = (2, 8)
TESTS = [ROOT / f"tests/test_{name}.py" for name in ("losses", "autograd", "compile")]
NEEDED = ["numpy", "pytest"]  # by these tests
VERSIONS = """
import platform, torch, numpy
try:
    from triton import __version__ as triton
except ImportError:
    triton = "none"
print(torch.__version__, platform.python_version(), triton, numpy.__version__)
"""

Row = tuple[str, ...]


def run(*command: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Its exit status, and what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"  # see tests/conftest.py
    done = subprocess.run(
        command, cwd=cwd, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def checked(*command: str | Path, cwd: Path | None = None) -> str:
    status, said = run(*command, cwd=cwd)
    if status:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{said}")
    return said


def newest_of_each_minor(said: str) -> list[str]:
    """Of what `pip index versions torch` prints, newest first."""
    (line,) = re.findall(r"^Available versions: (.+)$", said, re.MULTILINE)
    found: dict[tuple[int, int], str] = {}
    for version in line.split(", "):
        release = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
        if release and (minor := (int(release[1]), int(release[2]))) >= OLDEST:
            found.setdefault(minor, version)
    return [found[minor] for minor in sorted(found)]


def why_not(python: Path, version: str, index: list[str]) -> str | None:
    """A reason to leave out a release, before anything large is loaded."""
    command = ["install", "--dry-run", "--quiet", "--report", "-", *index, f"torch=={version}"]
    status, said = run(python, "-m", "pip", *command)
    if status:
        return next((line for line in said.splitlines() if "ERROR" in line), said)
    report = json.loads(said[said.index("{\n") :])
    names = [one["metadata"]["name"] for one in report["install"]]
    nvidia = [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    return f"it is a build for CUDA, with {len(nvidia)} packages of NVIDIA" if nvidia else None


def tested(python: Path, torch: list[str], others: list[str | Path], folder: Path) -> Row:
    """The row of an environment with torch and others, which pip gets in turn."""
    for requirements in (torch, others):
        checked(python, "-m", "pip", "install", "-q", *requirements)
    checked(python, "-c", "import logo_kernels", cwd=folder)
    versions = checked(python, "-c", VERSIONS, cwd=folder).splitlines()[-1].split()
    status, said = run(python, "-m", "logo_kernels", "--verify", "cpu", cwd=folder)
    print(said, flush=True)
    verified = "failed" if status else "passed"
    pytest = [python.parent / "pytest", "-q", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    status, said = run(*pytest, "-p", "no:cacheprovider", *TESTS, cwd=folder)
    print(said, flush=True)
    counts = re.findall(r"\d+ (?:failed|passed|skipped|errors?)", said.strip().splitlines()[-1])
    return (*versions, verified, ", ".join(counts) or f"ended with status {status}")


def written(text: str, row: Row) -> str:
    """The page with this row, in the place of an earlier one of the same versions."""
    before, rest = text.split(BEGIN)
    block, after = rest.split(END)
    rows = [line for line in block.strip().splitlines() if line and line not in HEADER]
    start = f"| {' | '.join(row[:4])} |"
    rows = [line for line in rows if not line.startswith(start)] + [f"| {' | '.join(row)} |"]
    rows.sort(key=lambda line: [int(number) for number in re.findall(r"\d+", line)])
    table = "\n".join([*HEADER, *rows])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--python", default=sys.executable, help="of the environments")
    parser.add_argument("--index-url", help="where pip finds torch, for builds without CUDA")
    parser.add_argument("--cuda-builds", action="store_true", help="take builds for CUDA too")
    parser.add_argument("--beside", nargs="+", default=[], help="triton==3.4.0 numpy==1.26.4")
    parser.add_argument("--wheel", type=Path, help="one that was built before")
    options = parser.parse_args()
    index = ["--extra-index-url", options.index_url] if options.index_url else []
    versions = options.versions or newest_of_each_minor(
        checked(options.python, "-m", "pip", "index", "versions", "torch", *index)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = options.wheel
        if wheel is None:
            os.environ["LOGO_KERNELS_CUDA"] = "off"
            checked(options.python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
            (wheel,) = folder.glob("*.whl")
        for version in versions:
            with tempfile.TemporaryDirectory(dir=folder) as environment:
                python = Path(environment) / "bin/python"
                checked(options.python, "-m", "venv", environment)
                reason = why_not(python, version, index)
                if reason is not None and not (options.cuda_builds and "for CUDA" in reason):
                    print(f"torch {version}: left out; {reason}", flush=True)
                    continue
                others = [*NEEDED, *options.beside, wheel.resolve()]
                row = tested(python, [*index, f"torch=={version}"], others, folder)
            PAGE.write_text(written(PAGE.read_text(), row))
            print(f"torch {version}: {row}", flush=True)


if __name__ == "__main__":
    main()
