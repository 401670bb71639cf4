"""A copy of the sources, what is installed from it, and the commands that run there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from . import ledger
from .counts import OF_THE_EMULATOR
from .steps import PASSED, Command, Outcome, Steps

CUDA_TOOLS = "/usr/local/cuda/bin"  # not on every PATH
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "results", "*.egg-info", "*.so", "__pycache__"
)
# What an installation is made of, and its stamp.
INSTALLED = ("csrc", "logo_kernels", "CMakeLists.txt", "setup.py", "pyproject.toml")
STAMP = "logo_kernels.sources"


class Workplace:
    """A copy of the sources and the package installed from it, away from the checkout."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.source, self.site = folder / "source", folder / "site"
        shutil.copytree(ledger.ROOT, self.source, ignore=NOT_SOURCES)
        (self.source / "benchmarks/results").mkdir()
        # cmake and ninja that came by pip lie beside the Python, whether that is on the PATH or not
        beside = str(Path(sys.executable).parent)
        path = os.pathsep.join([beside, os.environ.get("PATH", os.defpath), CUDA_TOOLS])
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.environment.pop("TRITON_INTERPRET", None)

    def install(self, seconds: float, architecture: str | None = None) -> Outcome:
        """By pip, against the torch that is there; the bare sources serve where that fails.

        The CUDA kernels are built for one architecture, where one is given: three take three times
        as long, and the GPU needs one.
        """
        command = [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation",
            "--no-deps", "--upgrade", "--target", self.site, self.source,
        ]  # fmt: skip
        environment = dict(self.environment)
        if architecture is not None:
            environment["CUDAARCHS"] = architecture
        (outcome,) = self.steps.run(Command("install", command, seconds, self.folder, environment))
        self.use(self.site if outcome.verdict == PASSED else self.source)
        return outcome

    def use(self, site: Path) -> None:
        self.environment["PYTHONPATH"] = str(site)

    def tool(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment["PATH"])

    def python(self, name: str, seconds: float, *arguments: str | Path) -> Command:
        """This Python on the copy, outside the checkout."""
        command = [sys.executable, *arguments]
        return Command(name, command, seconds, self.folder, self.environment)

    def verify(self, name: str, seconds: float, *what: str) -> Command:
        return self.python(name, seconds, "-m", "logo_kernels", "--verify", *what)

    @staticmethod
    def parallel(share: float = 0.5) -> list[str]:
        """Most of a GPU test is compilation, which a share of the cores divides among itself."""
        if importlib.util.find_spec("xdist") is None:
            return []
        return ["-n", str(max(1, min(12, int((os.cpu_count() or 1) * share))))]

    def tests(
        self,
        name: str,
        seconds: float,
        keyword: str,
        junit: Path,
        left_out: tuple[str, ...] = OF_THE_EMULATOR,
        share: float = 0.5,
    ) -> Command:
        """The package's tests that the keyword selects; not those of trainer and benchmarks."""
        tests = self.source / "tests"
        ignored = [f"--ignore={tests / folder}" for folder in ("trainer", "benchmarks", *left_out)]
        return self.python(
            name, seconds, "-m", "pytest", tests, "-c", self.source / "pyproject.toml",
            "--rootdir", self.source, "-p", "no:cacheprovider", "-q",
            "-m", "not slow", "-k", keyword, "--continue-on-collection-errors", *ignored,
            f"--junitxml={junit}", *self.parallel(share),
        )  # fmt: skip


def unusable(site: Path, root: Path) -> str | None:
    """Why a folder does not stand for an installation of the tree `root`, or None."""
    stamp = site / STAMP
    if not stamp.is_file():
        return f"it has no {STAMP}; make it by --build"
    if stamp.read_text().strip() != sources_hash(root):
        return "it was built from other sources; make it again by --build"
    extension = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not (site / "logo_kernels" / extension).is_file():
        return f"it has no logo_kernels/{extension}; make it by --build with this Python"
    return None


def sources_hash(root: Path) -> str:
    """sha256 over names and contents of all that an installation is made of."""
    files = [
        path
        for name in INSTALLED
        for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    return ledger.digest((path.relative_to(root).as_posix(), path) for path in files)
