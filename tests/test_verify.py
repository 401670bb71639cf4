"""`python -m logo_kernels --verify`: it finds what is wrong, goes on, and says so."""

import re
import shutil
import subprocess
import sys

import pytest
import torch

from affinity_oracle import Definition
from logo_kernels import verify
from logo_kernels.affinity import pairs
from logo_kernels.backends import AUTO, BACKENDS, backend_for
from logo_kernels.backends.reference import ReferenceBackend
from logo_kernels.verify.affinity import middle_of_gap
from logo_kernels.verify.case import Place
from logo_kernels.verify.errors import difference

SOME = dict.fromkeys(verify.OPERATIONS, 2) | {"cosine": 3}  # cases of a short run


@pytest.fixture
def short(monkeypatch):
    """The first of FEW alone."""
    for name, module in verify.OPERATIONS.items():
        monkeypatch.setattr(module, "FEW", module.FEW[: SOME[name]])
        monkeypatch.setattr(module, "MORE", [])


class Wrong(ReferenceBackend):
    """Right in all but one operation, or in none."""

    name = "wrong"
    missing_here = None

    def __init__(self, operation=None):
        self.operation = operation

    def missing(self):
        return self.missing_here

    def cosine(self, call, result):
        super().cosine(call, result)
        if self.operation == "cosine":
            row = result.grad_local[0, 0]
            row[-1] += 0.1 * row.abs().max()  # a single number

    def similarity(self, call, result):
        super().similarity(call, result)
        if self.operation == "similarity":
            result.cosines.mul_(1.1)


class WrongPairs(Wrong):
    """The affinity's kernels by their definition, but for one number of each image."""

    fuses_affinity = True
    definition = Definition()

    def __getattr__(self, name):
        if not name.startswith("affinity_"):
            raise AttributeError(name)

        def fill(call, result):
            made = getattr(self.definition, name.removeprefix("affinity_"))(*call)
            made = made if isinstance(made, tuple) else (made,)
            for buffer, values in zip(result, made, strict=False):  # scratch comes last
                buffer.copy_(values)
            if isinstance(call, pairs.OutputLayerCall):
                result.value.mul_(1.001)

        return fill


@pytest.fixture
def add(monkeypatch):
    """Puts a backend among those that there are."""

    def added(backend):
        monkeypatch.setitem(BACKENDS, backend.name, backend)
        backend_for.cache_clear()  # the one of another test had this name
        return backend

    return added


def table(printed):
    """operation -> (cases, wrong)."""
    rows = re.findall(r"^(\w+) +\w[\w, ]*? +(\d+)  .* (\d+)$", printed, re.MULTILINE)
    return {operation: (int(cases), int(wrong)) for operation, cases, wrong in rows}


def test_nothing_is_wrong_with_the_kernels_here(capsys, short):
    """Of each instruction set; all cases are run by the command's own test below."""
    assert verify.main(["cpu"]) == 0
    printed = capsys.readouterr().out
    for operation, cases in SOME.items():
        for simd in ("avx2", "portable"):
            line = next(
                line for line in printed.splitlines() if line.startswith(operation) and simd in line
            )
            assert line.split()[3] == str(cases)
            assert line.endswith(" 0")


def test_the_reference_in_the_dtypes_of_the_cases():
    """Of every case: what is asked of kernels, rounding in PyTorch alone keeps."""
    place = Place("reference", "cpu")
    for module in verify.OPERATIONS.values():
        for case in module.FEW + module.MORE:
            with verify.threads(1):
                found = verify.worst_of(case, place)
            assert found.share <= 1, (str(case), found)


@pytest.mark.parametrize("operation", ["cosine", "similarity"])
def test_a_wrong_number_is_named(add, short, capsys, operation):
    add(Wrong(operation))
    assert verify.main(["wrong"]) == 1
    printed = capsys.readouterr().out
    assert {name: wrong for name, (_, wrong) in table(printed).items() if wrong} == {
        operation: SOME[operation]
    }
    assert re.search(
        rf"wrong: {operation} .* by wrong: .* is .* and not .* at \[\d, \d.*\], "
        r"off by \d\.\de-0\d .*, allowed 1\.0e-05",
        printed,
    )


def test_a_wrong_kernel_of_the_affinity_is_found(add, short, capsys):
    add(WrongPairs())
    assert verify.main(["wrong", "affinity"]) == 1
    assert table(capsys.readouterr().out) == {"affinity": (SOME["affinity"], SOME["affinity"])}


def test_backward_scales_by_the_backend_that_is_verified(add, short, monkeypatch, capsys):
    """By auto's choice it would be another's kernel, and the one in question would never run."""
    asked = []

    class Scaling(Wrong):
        def refuses(self, request):
            asked.append(request.operation)
            return super().refuses(request)

    backend = add(Scaling())
    assert verify.main(["wrong", "cosine"]) == 0
    assert "scale" in asked
    key = "cosine", torch.device("cpu"), (torch.float32,), 1, 8
    assert backend_for(AUTO, key) is not backend  # only for as long


def test_an_exception_is_named_and_the_rest_still_runs(add, short, capsys):
    class Raising(Wrong):
        def cosine(self, call, result):
            if call.global_crops.dtype == torch.bfloat16:
                raise IndexError
            super().cosine(call, result)

    add(Raising())
    assert verify.main(["wrong"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"wrong: cosine .* bfloat16 .* by wrong: IndexError", printed)
    assert table(printed)["cosine"] == (SOME["cosine"], 1)
    assert table(printed)["affinity"] == (SOME["affinity"], 0)


def test_a_refusal_is_no_wrong_number(add, short, capsys):
    class Refusing(Wrong):
        def refuses(self, request):
            return "it has no bfloat16" if torch.bfloat16 in request.dtypes else None

    add(Refusing())
    assert verify.main(["wrong", "cosine"]) == 0
    printed = capsys.readouterr().out
    assert "not run: 1 cases of cosine by wrong" in printed
    assert "it has no bfloat16" in printed
    assert table(printed) == {"cosine": (SOME["cosine"] - 1, 0)}


def test_a_lost_device_ends_the_run(add, short, monkeypatch, capsys):
    class Faulting(Wrong):
        def similarity(self, call, result):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    add(Faulting())
    monkeypatch.setattr(verify, "place_of", lambda name: OnGpu(name))
    monkeypatch.setattr("torch.cuda.synchronize", lost)
    assert verify.main(["wrong"]) == 1
    printed = capsys.readouterr().out
    assert "lost to this process" in printed
    assert set(table(printed)) == {"cosine"}  # what had ended before


class OnGpu(Place):
    """A GPU that is none."""

    def __new__(cls, backend):
        return object.__new__(cls)

    def __init__(self, backend):
        super().__init__(backend, "cuda")

    def put(self, numbers):
        return Place(self.backend, "cpu").put(numbers)


def test_a_named_backend_has_to_work_here(add, short, capsys):
    backend = add(Wrong())
    backend.missing_here = "its compiler is not there"
    assert verify.main(["wrong"]) == 1
    assert "its compiler is not there" in capsys.readouterr().out
    assert verify.main(["cosine"]) == 0  # others are not asked for it


def test_unknown_names(capsys):
    assert verify.main(["cuda", "cosin"]) == 2
    assert "'cosin'" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_cuda_sources_pass(monkeypatch, capsys, architecture):
    """In the emulator, so that a sanitizer does not spend its time on a case that is wrong."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    pytest.importorskip("pybind11", reason="building the emulator needs pybind11")
    from emulation.backend import emulate

    emulate(monkeypatch, architecture)
    assert verify.main(["emulated"]) == 0
    counted = table(capsys.readouterr().out)
    for operation, module in verify.OPERATIONS.items():
        cases = [case for case in module.FEW + module.MORE if case.dtype != torch.float64]
        assert counted[operation] == (len(cases), 0)


def test_the_triton_sources_pass_with_few_compilations(monkeypatch, capsys):
    """Half a second each on a GPU, one after the other: all within a minute."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if torch.cuda.is_available():
        pytest.skip("the kernels are compiled here, not interpreted")
    compiled = set()
    run = interpreter.GridExecutor.__call__

    def recorded(self, *values, **named):
        """What Triton specialises by, but for what it is told not to."""
        given = dict(zip(self.arg_names, values, strict=False)) | named
        constants = (
            (name, str(value.dtype) if isinstance(value, torch.Tensor) else value)
            for name, value in given.items()
            if isinstance(value, torch.Tensor) or name in self.constexprs
        )
        compiled.add((self.fn.__name__, *constants))
        return run(self, *values, **named)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
    assert verify.main(["triton"]) == 0
    cases = {name: (len(module.FEW), 0) for name, module in verify.OPERATIONS.items()}
    assert table(capsys.readouterr().out) == cases
    kernels = {name for name, *_ in compiled}
    assert {"cosine_kernel", "scale_kernel", "similarity_backward_kernel"} <= kernels
    assert len(compiled) <= 125, len(compiled)


def test_the_command(tmp_path):
    """Every case on every instruction set, from another folder."""
    done = subprocess.run(
        [sys.executable, "-m", "logo_kernels", "--verify", "cpu"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cases = {name: len(module.FEW + module.MORE) for name, module in verify.OPERATIONS.items()}
    assert table(done.stdout) == {name: (count, 0) for name, count in cases.items()}


@pytest.mark.parametrize(
    ("got", "exact", "least", "expected", "place"),
    [
        (
            [[1.0, 2.0], [0.0, 1e-3]],
            [[1.0, 2.0], [1e-4, 1e-3]],
            0.0,
            0.1,
            "0 and not 0.0001 at [1, 0]",
        ),
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0, 0.0, ""),
        ([[0.0, 1e-30]], [[0.0, 0.0]], 0.0, float("inf"), "[0, 1]"),
        ([[1.0, float("nan")]], [[1.0, 1.0]], 0.0, float("inf"), "nan and not 1 at [0, 1]"),
        ([0.5], [0.25], 1.0, 0.25, "[0]"),
        (2.0, 1.0, 0.0, 1.0, "2 and not 1 at []"),
        ([0.5], [[0.5]], 0.0, float("inf"), "shape [1] and not [1, 1]"),
    ],
)
def test_errors_are_relative_to_their_row(got, exact, least, expected, place):
    found = difference(torch.tensor(got), torch.tensor(exact), least)
    assert found.error == pytest.approx(expected)
    assert place in found.told


def test_no_pair_is_close_to_zero():
    """ReLU lets the same pairs pass, whatever the rounding of bf16: 2^-8 of numbers of size one."""
    for case in verify.OPERATIONS["affinity"].FEW:
        crops = case.crops()
        with verify.threads(1):
            module = case.module(crops)
            reached = [case.inputs_of(module, relu, crops.double()) for relu in (2, 5)]
        for seen in reached:
            assert seen.abs().min() > (0.05 if case.dtype != torch.float32 else 1e-3)


def test_the_middle_of_a_gap():
    values = torch.tensor([[0.0, 5.0], [1.0, 2.0], [3.0, 4.0]])
    assert middle_of_gap(values).tolist() == [2.0, 3.0]


def test_what_cuda_does_another_way_is_among_its_cases():
    cases = verify.OPERATIONS["cosine"].FEW + verify.OPERATIONS["cosine"].MORE
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        of_dtype = [case for case in cases if case.dtype == dtype]
        vector = 4 if dtype == torch.float32 else 8
        assert {case.sizes[3] % vector == 0 for case in of_dtype} == {True, False}
        assert {case.view_major for case in of_dtype} == {True, False}
        assert {case.reduction for case in of_dtype} >= {"mean", "none"}
        assert {case.upstream == 1 for case in of_dtype} == {True, False}
        assert {case.sizes[3] * sum(case.sizes[1:3]) > 1 << 16 for case in of_dtype} == {
            True,
            False,
        }
