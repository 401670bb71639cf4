"""``python -m logo_kernels --verify``: whether the kernels compute here what they should.

Every kernel of every backend that works on this machine, through the public functions, against the
reference in float64, on small sizes. Needs torch alone.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..backends import BACKENDS, backend_for, preferring
from ..backends.extension import extension
from . import affinity, cosine, info_nce, similarity
from .case import Case, Place, Results
from .errors import Difference, difference

OPERATIONS = {
    "cosine": cosine,
    "similarity": similarity,
    "info_nce": info_nce,
    "affinity": affinity,
}
COMPILES = "triton"  # each case anew, up to half a second for a kernel: it gets few of them


class LostDeviceError(Exception):
    """The device answers this process no more."""


class Finding(NamedTuple):
    """What is furthest from float64 in a case, next to its bound."""

    name: str
    difference: Difference
    bound: float

    @property
    def share(self) -> float:
        return self.difference.error / self.bound


class Line(NamedTuple):
    """A line of the table: all cases of an operation on a backend."""

    operation: str
    backend: str
    cases: int
    wrong: int
    worst: Finding | None  # of those that came to an end

    def __str__(self) -> str:
        worst = self.worst
        found = "" if worst is None else f"{worst.difference.error:.1e} of {worst.bound:.1e}"
        return f"{self.operation:<11} {self.backend:<13} {self.cases:>5}  {found:<18}  {self.wrong}"


HEADER = f"{'operation':<11} {'backend':<13} {'cases':>5}  {'worst error, bound':<18}  wrong"


def main(names: Sequence[str]) -> int:
    """The exit status of a run of the backends and operations that are named; none named: all."""
    unknown = [name for name in names if name not in (*BACKENDS, *OPERATIONS)]
    if unknown:
        print(
            f"--verify got {unknown[0]!r}; it takes backends ({', '.join(BACKENDS)}) and "
            f"operations ({', '.join(OPERATIONS)})",
            file=sys.stderr,
        )
        return 2
    named = [name for name in names if name in BACKENDS]
    operations = [name for name in OPERATIONS if name in names] or list(OPERATIONS)
    places = {
        name: place_of(name) for name in named or (name for name in BACKENDS if name != "reference")
    }
    status = 0
    for name, place in places.items():
        if isinstance(place, str):
            print(f"not verified: {name}: {place}")
            status = 1 if named else status
    print(HEADER, flush=True)
    try:
        for place in places.values():
            if isinstance(place, Place):
                for line in lines(place, operations):
                    print(line, flush=True)
                    status = 1 if line.wrong else status
    except LostDeviceError as lost:
        print(f"{lost}\nNothing more runs on this device in this process. Name what is left.")
        return 1
    return status


def place_of(backend: str) -> Place | str:
    """Where a backend works on this machine; or why nowhere."""
    if (missing := BACKENDS[backend].missing()) is not None:
        return missing
    reasons = []
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        try:
            backend_for(backend, ("similarity", torch.device(device), (torch.float32,), 1, 8))
        except RuntimeError as refusal:
            reasons.append(str(refusal))
        else:
            return Place(backend, device)
    return reasons[0]


def lines(place: Place, operations: Sequence[str]) -> Iterator[Line]:
    """Of each operation; on the CPU by each instruction set that there are kernels for."""
    with preferring(place.backend):  # backward scales gradients by auto's choice
        if place.backend != "cpu":
            for operation in operations:
                yield line_of(operation, place.backend, place)
            return
        before = extension.current_simd()  # type: ignore[union-attr]
        try:
            for simd in extension.simds():  # type: ignore[union-attr]
                extension.use_simd(simd)  # type: ignore[union-attr]
                for operation in operations:
                    yield line_of(operation, f"cpu, {simd}", place)
        finally:
            extension.use_simd(before)  # type: ignore[union-attr]


def line_of(operation: str, shown: str, place: Place) -> Line:
    """Runs the cases of an operation, and prints what is wrong as soon as it is known."""
    module = OPERATIONS[operation]
    cases: list[Case] = module.FEW if place.backend == COMPILES else module.FEW + module.MORE
    if place.device == "cuda":  # no kernel there has float64
        cases = [case for case in cases if case.dtype != torch.float64]
    findings, failed, refused = [], 0, Counter[str]()
    usual = torch.get_num_threads()
    for case in cases:
        try:
            with threads(usual if case in module.FEW else 1):
                findings.append(worst_of(case, place))
        except Exception as failure:  # goes on: what else is wrong is worth knowing
            if is_refusal(failure, place.backend):
                refused[str(failure)] += 1
                continue
            failed += 1
            traceback.print_exc()
            print(f"wrong: {case} by {shown}: {type(failure).__name__}: {failure}", flush=True)
            if place.device == "cuda":
                still_answers()
            continue
        if findings[-1].share > 1:
            name, found, bound = findings[-1]
            print(f"wrong: {case} by {shown}: {name} is {found}, allowed {bound:.1e}", flush=True)
    for reason, count in refused.items():
        print(f"not run: {count} cases of {operation} by {shown}: {reason}")
    wrong = failed + sum(finding.share > 1 for finding in findings)
    worst = max(findings, key=lambda finding: finding.share, default=None)
    return Line(operation, shown, len(findings) + failed, wrong, worst)


def worst_of(case: Case, place: Place) -> Finding:
    expected = exact(case)
    found = case.results(place)
    if found.keys() != expected.keys():
        raise AssertionError(f"got {sorted(found)}, expected {sorted(expected)}")
    return max(
        (
            Finding(name, difference(value, expected[name], case.least(name)), case.bound(value))
            for name, value in found.items()
        ),
        key=lambda finding: finding.share,
    )


@functools.cache
def exact(case: Case) -> Results:
    with threads(1):
        return case.results(Place("reference", "cpu", exact=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch and the kernels on so many: on a busy machine, many small cases on all cores would
    spend minutes waiting for each other's turn.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def is_refusal(failure: Exception, backend: str) -> bool:
    """Whether the backend said that it does not serve a case, as it may."""
    return str(failure).startswith(f"backend {backend!r} cannot serve")


def still_answers() -> None:
    """After some errors, such as an illegal access, a process has lost its device."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as failure:
        raise LostDeviceError(f"the device is lost to this process: {failure}") from None
